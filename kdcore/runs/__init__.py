"""Runs: folders, stages in order, resuming, reopening, publishing. Internal."""
