"""The commands other than `run` and `check`, one file each, and their helpers. Internal."""
