"""Contracts of plugin authors: components, hooks, options. `kdcore` re-exports the public names."""
