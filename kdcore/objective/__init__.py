"""The objective: chunked losses, teachers, selection. Internal."""

from kdcore.deprecated import moved_names

__getattr__ = moved_names("objective")
