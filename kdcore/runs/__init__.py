"""Runs: folders, stages in order, resume, reopening, what is published. Internal."""
