"""What a recipe will cost, and what its rows are. Internal."""
