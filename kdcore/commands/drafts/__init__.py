"""Recipes and plugins that `kdcore new` starts. Internal."""
