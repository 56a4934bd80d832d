"""Rollouts: rows that the student, or a teacher, writes while training. Internal.

Prompts are cut from the rows that a step draws, written in groups that do not hang on the number of
processes, gathered, and laid in rows of a split of their own.
"""
