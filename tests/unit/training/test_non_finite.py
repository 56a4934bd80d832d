"""Steps that are not finite: nothing is changed by them, they are told and kept, and met again."""

import logging
import math
import re
from types import SimpleNamespace

import given
import numpy as np
import pytest
import torch
from engine import term
from training import assert_equal, records, trainer, weights

from kdcore import Loss, RunError
from kdcore.training.non_finite import load_rows

pytestmark = pytest.mark.slow

ROWS = given.packed_rows()


class Explodes(Loss):
    """Its value, or its gradient alone, is not finite where this label is learned."""

    name = "explodes"
    needs_teacher = False

    def __init__(self, label, gradient=False):
        self.label, self.gradient = label, gradient

    def per_token(self, student, teacher, labels):
        hit, nothing = labels == self.label, student[:, 0] * 0
        if self.gradient:  # the root's slope at 0
            return torch.where(hit, nothing, nothing + 1).sqrt()
        return nothing + torch.where(hit, math.inf, 0.0)


def made_of(folder, label, *, gradient=False, late=False, **options):
    terms = [term(), term(Explodes(label, gradient))]
    made = trainer(folder, terms=terms, **{"save_every": 2} | options)
    made.run.tokenizer = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    made.refusals.deferred = late  # as on a GPU
    return made


def learned(rows):
    return {
        int(row["input_ids"][n])
        for row in rows
        for n in range(1, len(row["input_ids"]))
        if row["position"][n] and row.get("labels", row["input_ids"])[n] >= 0
    }


@pytest.fixture(scope="module")
def label(tmp_path_factory):
    """One that is learned in the second step, not in the first: an epoch is two steps."""
    rows = trainer(tmp_path_factory.mktemp("rows")).rows
    return min(learned(rows.step(2)) - learned(rows.step(1)))


def stopped(made):
    with pytest.raises(RunError) as caught:
        made.train()
    return str(caught.value)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_state_before_the_step_is_kept_and_the_step_is_met_again(
    tmp_path, label, gradient, late
):
    plain = made_of(tmp_path / "plain", -1)
    plain.step(1)
    options = {"gradient": gradient, "late": late, "log_every": 4, "save_every": 4}
    made = made_of(tmp_path / "made", label, **options)
    said = stopped(made)
    assert re.search(r"step 2 is not finite: explodes in [1-4] of its 4 rows:\n", said), said
    assert f"explodes: {'gradient' if gradient else 'loss'}): '" in said
    assert str(label) in said and "--set train.non_finite=skip" in said
    assert_equal(weights(made), weights(plain))
    assert made.checkpoints.newest().name == "step-1"
    again = made_of(tmp_path / "made", label, **options)
    again.resume()
    assert_equal(weights(again), weights(plain))
    assert stopped(again) == said
    changed = made_of(tmp_path / "made", -1, log_every=4)
    changed.resume()
    changed.train()
    plain.run.step = 1
    plain.train()
    assert_equal(weights(changed), weights(plain))


def test_the_rows_of_the_step_are_kept(tmp_path, label):
    made = made_of(tmp_path, label)
    path = re.search(r"rows are in (\S+)\. ", stopped(made))[1]
    for kept, row in zip(load_rows(path), made.rows.step(2), strict=True):
        assert kept.keys() == {"input_ids", "labels", "document", "offset", "position"}
        for key, values in kept.items():
            assert np.array_equal(values, row.get(key, row["input_ids"])), key


def test_the_first_step_leaves_nothing_to_resume_from(tmp_path):
    rows = trainer(tmp_path).rows.step(1)
    made = made_of(tmp_path, min(learned(rows)))
    assert "The weights are those of step 0" in stopped(made)
    assert made.checkpoints.newest() is None


@pytest.mark.parametrize("late", [False, True])
def test_steps_are_skipped_where_the_recipe_says_so(tmp_path, label, caplog, late):
    """What is skipped changes nothing, and counts for nothing in the records."""
    options = {"non_finite": "skip", "log_every": 6, "save_every": 6, "late": late}
    made = made_of(tmp_path / "made", label, **options)
    with caplog.at_level(logging.WARNING, "kdcore"):
        made.train()
    assert [f"step {n} is not finite and was skipped" in caplog.text for n in (1, 2, 3)] == [
        False,
        True,
        False,
    ]
    assert (tmp_path / "made" / "non_finite" / "step-2.safetensors").exists()
    plain = made_of(tmp_path / "plain", -1)
    bad = [n for n in range(1, 7) if f"step {n} is not finite" in caplog.text]
    for step in set(range(1, 7)) - set(bad):
        plain.step(step)
    assert_equal(weights(made), weights(plain))
    (record,) = records(made)
    plain.recorder.count()
    assert record.tokens == plain.run.tokens
    assert record.terms["ce"] == pytest.approx(plain.recorder.record(0.1).terms["ce"])


def test_a_loss_scaler_is_ready_for_the_step_after_a_skipped_one(tmp_path, label):
    made = made_of(tmp_path, label, non_finite="skip")
    scaler = made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    applied = []

    def apply():
        applied.append(made.run.step + 1)
        scaler.step(made.optimizer)
        scaler.update()

    made.apply = apply
    made.train()
    assert made.run.step == 6 and 0 < len(applied) < 6 and 2 not in applied
    assert all(each.isfinite().all() for each in weights(made))


def test_a_run_of_nothing_but_skipped_steps_ends(tmp_path):
    class Never(Explodes):
        def per_token(self, student, teacher, labels):
            return student[:, 0] * math.nan

    made = trainer(tmp_path, terms=[term(Never(-1))], steps=30, non_finite="skip")
    made.run.tokenizer = SimpleNamespace(decode=str)
    assert "10 steps in a row, the last of them 10, are not finite" in stopped(made)
