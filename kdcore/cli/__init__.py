"""The command line: `run`, `check`, the other verbs and `--processes`. Internal."""

from kdcore.deprecated import moved_names

__getattr__ = moved_names("cli")
