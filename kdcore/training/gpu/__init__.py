"""What `[train]` sets for speed on a GPU: bf16 working weights, CUDA graphs."""
