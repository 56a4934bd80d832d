"""Sweeps: many runs of a recipe as one graph of stages, run by an executor.

Internal. Plugins import from `kdcore`.
"""
