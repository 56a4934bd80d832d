"""What a run wrote, read: metrics.jsonl, curves, settings, a summary. Internal."""
