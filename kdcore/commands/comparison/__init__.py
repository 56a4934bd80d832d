"""Runs and arms compared, for `kdcore compare`, `show` and `report`. Internal."""
