"""The command line: `run`, `check`, other commands, and `--processes`. Internal."""

from kdcore.deprecated import moved_names

__getattr__ = moved_names("cli")
