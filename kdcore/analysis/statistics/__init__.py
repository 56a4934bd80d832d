"""Differences between runs: intervals over seeds and held-out documents, and verdicts. Internal."""
