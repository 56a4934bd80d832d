"""A CUDA device for tests on machines without one: see `__main__`."""
