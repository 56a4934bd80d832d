"""Sweeps: many runs of a recipe as one graph of stages, over the machines that an executor has.

Internal. Plugins import from `kdcore`.
"""
