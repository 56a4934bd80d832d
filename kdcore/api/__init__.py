"""Contracts of plugin authors: components, hooks, options. `kdcore` re-exports the public names."""

from kdcore.deprecated import moved_names

__getattr__ = moved_names("api")
