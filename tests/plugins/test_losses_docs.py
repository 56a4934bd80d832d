"""docs/losses.md says what the losses are: its tables agree with them, and its examples run."""

import dataclasses
import re
from pathlib import Path

import pytest
import textbook
import tomli
import torch
from kdcore_losses import kdcore_losses

TEXT = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
LOSSES = {loss.name: loss for loss in kdcore_losses()}
ROWS = [re.split(r"(?<!\\)\|", line)[1:-1] for line in TEXT.splitlines() if line.startswith("| `")]
ENGINE_KEYS = {"use", "weight", "on"}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_python_examples_run():
    names = {"__name__": "docs"}
    for block in blocks("python"):
        exec(compile(block, "docs/losses.md", "exec"), names)
    assert "SquaredHellinger" in names


def test_recipe_examples_are_accepted():
    tables = [table for block in blocks("toml") for table in tomli.loads(block)["loss"]]
    assert len(tables) >= 5
    for table in tables:
        LOSSES[table["use"]](**{key: table[key] for key in table.keys() - ENGINE_KEYS})


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_has_formula_and_options(name):
    (row,) = [row for row in ROWS if quoted(row[0]) == [name]]
    made = LOSSES[name]()
    assert quoted(row[1]) == [made.formula()]
    fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else []
    assert tomli.loads("\n".join(quoted(row[2]))) == {f.name: getattr(made, f.name) for f in fields}


def test_every_function_of_a_formula_is_explained():
    explained = {quoted(row[0])[0].split("(")[0] for row in ROWS if "(" in row[0]}
    assert set(textbook.FUNCTIONS) <= explained


P, Q = torch.tensor([[0.4, 0.35, 0.15, 0.1]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])


def value(loss, p=P, q=Q):
    return loss.per_token(q.log(), p.log(), torch.zeros(len(p), dtype=torch.long)).item()


def adaptive(in_head, p=P, q=Q):
    """Both divergences by the shares that head and tail have of the distance."""
    apart = (p - q).abs()
    share = (apart * in_head).sum() / apart.sum()
    forward, reverse = ((a * (a / b).log()).sum() for a, b in ((p, q), (q, p)))
    return (share * forward + (1 - share) * reverse).item()


def test_adaptive_kl_is_kdflows_and_in_its_other_form_that_of_its_authors():
    ascending = torch.tensor([[1.0, 0.6, 0.25, 0.1]])  # the mass of the ids no likelier
    descending = torch.tensor([[0.4, 0.75, 0.9, 1.0]])
    kdflow, authors = adaptive(ascending > 0.5), adaptive(descending < 0.5)
    assert value(LOSSES["adaptive-kl"](head=0.5)) == pytest.approx(kdflow, rel=1e-5)
    assert (kdflow, authors) == pytest.approx((0.50985, 0.51053), abs=2e-5)
    theirs = LOSSES["adaptive-kl"](head=0.5, form="authors")
    assert value(theirs) == pytest.approx(authors, rel=1e-5)
    # The likeliest id is in their head, however heavy.
    heavy = LOSSES["adaptive-kl"](head=0.3, form="authors")
    assert value(heavy) == pytest.approx(adaptive(descending < 0.5), rel=1e-5)


def test_the_limits_of_alpha_beta_are_divided_by_the_square():
    """ABKD's ab_div(alpha, 0) is alpha times this: its sum is divided by alpha alone."""
    alpha = 0.5
    limit = (P**alpha * alpha * (P / Q).log() - P**alpha + Q**alpha).sum().item()
    assert value(LOSSES["alpha-beta"](alpha=alpha, beta=0.0)) == pytest.approx(limit / alpha**2)
