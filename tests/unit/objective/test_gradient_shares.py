"""Each term's share of the gradient, and what is said where one hardly counts."""

import logging

import given
import pytest
import torch
from engine import Held, term
from kdcore_losses import CrossEntropy, ForwardKL
from training import assert_equal, records, trainer, weights

from kdcore.api.schedule import Schedule
from kdcore.objective.gradient_shares import (
    GradientShares,
    is_measured,
    negligible_terms,
    shares_of,
)


def test_the_shares_are_those_of_the_gradients_in_the_logits(tmp_path):
    """By the whole logits, each term alone."""
    terms = [term(CrossEntropy(), 0.5), term(ForwardKL(temperature=2.0))]
    made = trainer(tmp_path, terms=terms, batch=4, micro_batch=3, log_every=1, steps=1)
    made.objective.chunk = 1000
    model, teacher = made.run.language_model, Held(given.model(seed=1))
    batch = made.collate(made.rows.step(1))
    student = model.logits(model.states(batch))[batch.valid].detach().requires_grad_()
    other = teacher.read(batch)(batch.valid).detach()
    labels, norms = batch.labels[batch.valid], {}
    for each in terms:
        loss = each.weight * each.loss.per_token(student, other, labels).mean()
        norms[each.label] = float(torch.autograd.grad(loss, student)[0].norm())
    made.train()
    (record,) = records(made)
    wanted = {label: norm / sum(norms.values()) for label, norm in norms.items()}
    assert record.gradient == pytest.approx(wanted, rel=1e-4)


def test_a_micro_batchs_first_chunk_is_enough():
    """What is measured costs no more where logits are wide, and a step has many chunks."""
    asked = []

    def values(student, teacher, labels, weights, prepared=()):
        asked.append(weights.tolist())
        return weights.sum(1), student

    watch = GradientShares(["ce", "kl"], torch.device("cpu"))
    terms = [term(CrossEntropy()), term(ForwardKL())]
    for _ in range(2):
        watched = watch.watched(values, terms)
        for _ in range(3):
            watched(torch.ones(1, 2), None, torch.zeros(1), torch.tensor([[3.0], [5.0]]))
    whole = [[3.0], [5.0]]
    assert asked == [[[3.0], [0.0]], [[0.0], [5.0]], whole, whole, whole] * 2
    assert watch.squares.tolist() == [4.0, 4.0]


def test_looking_changes_nothing(tmp_path, monkeypatch):
    looked, plain = trainer(tmp_path / "looked", steps=2), trainer(tmp_path / "plain", steps=2)
    looked.train()
    monkeypatch.setattr("kdcore.training.step.is_measured", lambda *_: False)
    plain.train()
    assert_equal(weights(looked), weights(plain))
    assert set(records(looked)[0].gradient) == {"kl", "ce"}
    assert not records(plain)[0].gradient


def test_when_it_is_measured():
    assert [n for n in range(1, 1001) if is_measured(n, 1000, 2)] == [1, *range(100, 1001, 100)]
    assert sum(is_measured(n, 100_000, 2) for n in range(1, 100_001)) == 21
    assert not is_measured(1, 1000, 1)


def test_nothing_measured_has_no_shares():
    assert shares_of({"kl": 0.0, "ce": 0.0}) == {}
    assert shares_of({"kl": 9.0, "ce": 1.0}) == {"kl": 0.75, "ce": 0.25}


def test_a_term_that_hardly_counts_is_reported_once(tmp_path, caplog):
    terms = [term(ForwardKL()), term(CrossEntropy(), 1e-4)]
    made = trainer(tmp_path, terms=terms, steps=200, log_every=50)
    with caplog.at_level(logging.WARNING, "kdcore"):
        made.run.steps = 1
        made.train()
        made.recorder._squares += torch.tensor([1e6, 1.0])
        made.run.steps = 2
        made.train()
    assert caplog.text.count("the loss 'ce' gives 0.0% of the gradient (kl 100.0%)") == 1


def test_a_weight_scheduled_to_zero_is_no_warning():
    fading = term(CrossEntropy(), Schedule(start=1.0, end=0.0))
    assert not negligible_terms({"kl": 0.999, "ce": 0.001}, [term(ForwardKL()), fading])
    assert set(
        negligible_terms({"kl": 0.999, "ce": 0.001}, [term(ForwardKL()), term(CrossEntropy())])
    ) == {"ce"}
