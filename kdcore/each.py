"""`--each K=a,b,c`: one variant of a recipe for each value; several multiply."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

from kdcore.errors import UsageError

_PIECE = re.compile(
    r"""
    "(?:\\.|[^"\\])*"   # texts, in which commas and brackets mean nothing
  | '[^']*'
  | [\[\]{},]
  | [^\[\]{},"']+
  | ["']                # one without its partner is a letter like any other
""",
    re.VERBOSE,
)


def expand(sets: Sequence[str], eaches: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Every combination as a label (`seed=1 loss.kl.use=kl`; empty without `--each`) and sets."""
    choices = [_choices(each) for each in eaches]
    keys = [variants[0].partition("=")[0] for variants in choices]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"--each {key} is given twice; name all values in one")
    return [(" ".join(chosen), [*sets, *chosen]) for chosen in product(*choices)]


def _choices(each: str) -> list[str]:
    key, equals, values = each.partition("=")
    split = _at_commas(values)
    if not key or not equals or not all(split):
        raise UsageError(f"--each {each}: write K=a,b,c, such as --each seed=0,1,2")
    return [f"{key}={value}" for value in split]


def _at_commas(text: str) -> list[str]:
    """The text cut at the commas that stand in no brackets and no quotes."""
    values, depth = [""], 0
    for piece in _PIECE.findall(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece, 0)
        if piece == "," and depth == 0:
            values.append("")
        else:
            values[-1] += piece
    return [value.strip() for value in values]
