"""Terminal output during work: one live display, with all other output above it.

Internal, except for what `kdcore.__all__` lists.
"""
