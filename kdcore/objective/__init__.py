"""The training objective: chunked losses, teachers, selections. Internal."""

from kdcore.deprecated import moved_names

__getattr__ = moved_names("objective")
