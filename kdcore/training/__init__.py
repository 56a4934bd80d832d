"""Training: set-up, step, loop, checkpoints, evaluation. Internal."""
