"""The verbs besides `run` and `check`, one file a verb with what belongs to it. Internal."""
