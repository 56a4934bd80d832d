"""What a checkpoint is on disk."""
