"""Analysis of recipes: cost estimates and sample rows. Internal."""
