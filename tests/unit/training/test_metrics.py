"""What is logged of some steps: each term as its loss defines it, beside its weight."""

from types import SimpleNamespace

import pytest
import torch

from kdcore.training.metrics import MetricsAccumulator


def recorder(*labels):
    terms = [SimpleNamespace(label=label, loss=None) for label in labels]
    recipe = SimpleNamespace(terms=terms, selection=None)
    about = {"device": torch.device("cpu"), "step": 3, "tokens": 0, "process": 0, "processes": 1}
    run = SimpleNamespace(recipe=recipe, **about)
    return MetricsAccumulator(run, SimpleNamespace(reduce=lambda value, how: value)), terms


def add(made, weighted, means, good=1.0):
    """A step in two micro-batches, in which the terms have these means."""
    weights = torch.tensor([weight for _, weight in weighted])
    shares = weights * torch.tensor(means)
    choices = SimpleNamespace(valid=torch.tensor(10.0), kept=[], ranked=None, known=None)
    made.add(weighted, [shares * 0.25, shares * 0.75], choices, torch.tensor(good))


def test_a_term_is_reported_without_its_weight_and_the_loss_is_the_sum():
    made, (ce, kl) = recorder("ce", "kl")
    for means in ([4.0, 1.0], [2.0, 3.0]):
        add(made, [(ce, 0.5), (kl, 0.25)], means)
    record = made.record(1e-3)
    assert record.terms == pytest.approx({"ce": 3.0, "kl": 2.0})
    assert record.weights == pytest.approx({"ce": 0.5, "kl": 0.25})
    assert record.loss == pytest.approx(0.5 * 3.0 + 0.25 * 2.0)


def test_a_weight_that_changes_and_steps_in_which_a_term_weighs_nothing():
    made, (ce, kl) = recorder("ce", "kl")
    add(made, [(ce, 1.0), (kl, 0.5)], [4.0, 1.0])
    add(made, [(ce, 0.0)], [9.0])  # a step without any weight is computed all the same
    record = made.record(1e-3)
    assert record.terms == pytest.approx({"ce": 4.0, "kl": 1.0})
    assert record.weights == pytest.approx({"ce": 0.5, "kl": 0.25})
    add(made, [(ce, 1.0)], [5.0])
    assert made.record(1e-3).terms == pytest.approx({"ce": 5.0})


def test_a_step_that_was_held_back_counts_for_nothing():
    made, (ce,) = recorder("ce")
    add(made, [(ce, 0.5)], [4.0])
    add(made, [(ce, 0.5)], [float("nan")], good=0.0)
    record = made.record(1e-3)
    assert record.terms == pytest.approx({"ce": 4.0}) and record.weights == {"ce": 0.5}


def test_sums_resume_from_a_checkpoint_and_older_ones_are_accepted():
    made, (ce,) = recorder("ce")
    add(made, [(ce, 0.5)], [4.0])
    state = made.state_dict()
    other, _ = recorder("ce")
    other.load_state_dict([state])
    add(other, [(ce, 0.5)], [2.0])
    assert other.record(1e-3).terms == pytest.approx({"ce": 3.0})
    older, _ = recorder("ce")
    older.load_state_dict([{key: state[key] for key in ("terms", "squares", "counts")}])
    add(older, [(ce, 0.5)], [2.0])
    record = older.record(1e-3)
    assert record.terms == pytest.approx({"ce": 2.0})
    assert record.loss == pytest.approx(0.5 * 3.0)
