"""Rows of tokens, of the data or of a training step, for `kdcore show`. Internal."""
