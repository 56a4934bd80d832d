"""The engine with a teacher that knows some ids only, against `oracle` on sums of its masses."""

import copy
import math

import engine
import oracle
import pytest
import torch
from cases import LOSSES, MICRO_BATCHES, ROWS, SHARE, assert_equal, model, teacher_of
from engine import term
from given import VOCABULARY
from kdcore_losses import CrossEntropy, ForwardKL
from kdcore_selections import Entropy, Hardest
from oracle_losses import buckets

from kdcore import SparseLogits

pytestmark = pytest.mark.slow

K = 5


class HeldTop(engine.Held):
    """What a held model says of its likeliest ids."""

    def ids_known(self):
        return K

    def read(self, batch):
        at = super().read(batch)

        def known(positions):
            logs = at(positions)[:, :VOCABULARY].log_softmax(-1)
            found, ids = logs.topk(K)
            others = logs.scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)
            return SparseLogits(ids, torch.cat([found, others], -1))

        return known


def known(logits):
    """By sorting, in the oracle's way."""
    return sorted(range(len(logits)), key=lambda n: -logits[n])[:K]


def coarse(loss):
    """The same loss, as the oracle is to take it."""
    if not loss.needs_teacher:
        return loss
    made = copy.copy(loss)
    object.__setattr__(made, "known", known)
    return made


def both(terms, rows="packed", micro_batch=3, **options):
    """Of the engine and of the oracle."""
    scores = options.pop("scores", None)
    found = engine.step(
        model(),
        ROWS[rows],
        terms,
        teacher=HeldTop(model(seed=1)),
        micro_batch=micro_batch,
        **options,
    )
    expected = oracle.step(
        model(),
        ROWS[rows],
        [term(coarse(t.loss), t.weight, t.on, t.label) for t in terms],
        vocabulary=VOCABULARY,
        teacher=teacher_of()[1],
        scores=scores,
        share=SHARE if scores else 1.0,
    )
    return found, expected


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    assert_equal(*both([term(LOSSES[name])]))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
def test_with_a_loss_of_all_ids_and_a_selection(rows, micro_batch):
    terms = [term(ForwardKL(temperature=2.0), 0.7), term(CrossEntropy(), 0.3, on="all")]
    selection = Hardest(keep=SHARE)
    options = {"rows": rows, "micro_batch": micro_batch, "scores": oracle.hardest}
    assert_equal(*both(terms, selection=selection, **options), selected=True)


def test_the_entropy_of_such_a_teacher_is_that_of_its_buckets():
    def scores(tokens, rows):
        made = coarse(ForwardKL())
        masses = (buckets(made, token, token.teacher) for token in tokens)
        return [float(-(p * p.log()).sum()) for p in masses]

    selection = Entropy(keep=SHARE, of="teacher")
    assert_equal(*both([term(ForwardKL())], selection=selection, scores=scores), selected=True)
