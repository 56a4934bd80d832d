"""What kdcore shows while it works: one live display, below which nothing of others is left.

Internal, but for what `kdcore.__all__` lists.
"""
