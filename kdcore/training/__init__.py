"""Training: setup, loop, steps, checkpoints, evaluation. Internal."""
