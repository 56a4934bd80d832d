"""Reading what a run wrote: metrics.jsonl, curves, settings, a summary. Internal."""
