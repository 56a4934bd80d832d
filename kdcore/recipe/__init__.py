"""The recipe language: TOML files -> checked stages. Internal."""

from kdcore.deprecated import moved_names

__getattr__ = moved_names("recipe")
