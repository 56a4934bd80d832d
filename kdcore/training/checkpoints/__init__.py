"""Checkpoints: what they hold, how they are saved and loaded, what is in a folder of them."""
