"""Contracts for plugin authors: components, hooks, options. `kdcore` re-exports public names."""

from kdcore.deprecated import moved_names

__getattr__ = moved_names("api")
