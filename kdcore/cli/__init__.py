"""The command line: `run`, `check`, the other verbs and `--processes`. Internal."""
