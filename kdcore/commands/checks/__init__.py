"""What `kdcore doctor` and `kdcore plugins --verify` check. Internal."""
