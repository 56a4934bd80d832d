"""Compiled values equal plain ones. Compiling needs a C++ compiler, on a CPU too."""

import shutil

import cases
import engine
import pytest
import torch
from cases import LOSSES
from engine import Held, term
from kdcore_losses import CrossEntropy, DistiLLM2, ForwardKL
from kdcore_selections import Hardest

from kdcore import Loss, SparseLogits
from kdcore.objective import compiled_losses
from kdcore.objective.compiled_losses import compiled_values_of
from kdcore.objective.losses import values_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
]
CHUNK = 16


def chunk(tokens=CHUNK, terms=1, vocabulary=37):
    """Student, teacher, labels and weights of so many tokens."""
    generator = torch.Generator().manual_seed(tokens)
    student, teacher = 3 * torch.randn(2, tokens, vocabulary, generator=generator)
    labels = torch.arange(tokens) % vocabulary
    return student, teacher, labels, torch.rand(terms, tokens, generator=generator)


def assert_same(fast, plain, student, *parts):
    """The gradient may take the place of the student's logits."""
    for found, exact in zip(fast(student.clone(), *parts), plain(student, *parts), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-5)


def graphs():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def test_every_loss_as_one_graph_that_serves_chunks_of_any_size():
    """Each by itself: dynamo's limit of variants must not count over losses."""
    before = graphs()
    for loss in LOSSES.values():
        fast, plain = compiled_values_of([loss], CHUNK), values_of([loss])
        for tokens in (16, 7, 1, 16):
            assert_same(fast, plain, *chunk(tokens))
    assert graphs() - before == len(LOSSES)


def test_terms_share_a_graph():
    losses = [ForwardKL(temperature=2.0), CrossEntropy()]
    assert_same(compiled_values_of(losses, CHUNK), values_of(losses), *chunk(9, terms=2))


def test_where_compiled_code_overwrites_too_early_the_gradient_has_memory_of_its_own(monkeypatch):
    """As up to torch 2.11, where the sums were wrong."""
    monkeypatch.setattr(compiled_losses, "_OVERWRITES", False)
    losses = [ForwardKL(temperature=2.0), CrossEntropy()]
    fast, plain = compiled_values_of(losses, CHUNK), values_of(losses)
    for tokens in (16, 7):
        student, *parts = chunk(tokens, terms=2)
        assert_same(fast, plain, student, *parts)
        before = student.clone()
        fast(student, *parts)
        assert torch.equal(student, before)


@pytest.mark.parametrize("losses", [[CrossEntropy()], [CrossEntropy(), ForwardKL()]], ids=len)
def test_pieces_of_larger_tensors_are_no_other_variant(losses):
    """Weights are cut from those of the micro-batch, which has another size each step."""
    fast, before = compiled_values_of(losses, CHUNK), graphs()
    for tokens in (16, 40, 64, 100):
        student, teacher, labels, weights = chunk(tokens, terms=len(losses))
        for at in torch.arange(tokens).split(CHUNK):
            some = slice(int(at[0]), int(at[-1]) + 1)
            fast(student[some], teacher[some], labels[some], weights[:, some])
    assert graphs() - before == 1


class Relative(Loss):
    """Not a number where student and teacher are equal, which only rows of zeros are."""

    name = "relative"

    def per_token(self, student, teacher, labels):
        gaps = (student - teacher).square().sum(-1)
        return gaps / gaps.detach()


def test_a_loss_that_prepares_and_keeps_state_is_compiled_once(caplog):
    loss, before = DistiLLM2(), graphs()
    fast, plain = compiled_values_of([loss], CHUNK), values_of([loss])
    for tokens in (16, 7, 16):
        wrote = (torch.arange(tokens) % 2).float()
        prepared = torch.stack([wrote, torch.full_like(wrote, 0.05), torch.rand(tokens)], 1)
        assert_same(fast, plain, *chunk(tokens), [prepared])
        loss.load_state_dict({"gaps": torch.rand(2, dtype=torch.float64)})
    assert graphs() - before == 1
    assert "uncompiled" not in caplog.text


def test_what_fills_up_the_last_chunk_cannot_spoil_it():
    assert_same(compiled_values_of([Relative()], CHUNK), values_of([Relative()]), *chunk(7))


def test_a_loss_that_changes_runs_uncompiled_and_says_so_once(caplog):
    loss = ForwardKL()
    fast, plain = compiled_values_of([loss], CHUNK), values_of([loss])
    assert_same(fast, plain, *chunk())
    before = graphs()
    for temperature in (1.5, 2.0, 2.5):
        loss.temperature = temperature
        assert_same(fast, plain, *chunk())
    assert graphs() == before
    assert caplog.text.count("a loss changes its options") == 1


def test_a_loss_may_hold_a_tensor():
    class Weighted(CrossEntropy):
        def per_token(self, student, teacher, labels):
            return super().per_token(student, teacher, labels) * self.by[labels]

    loss = Weighted()
    loss.by = torch.rand(37)
    fast = compiled_values_of([loss], CHUNK)
    for _ in range(2):
        assert_same(fast, values_of([loss]), *chunk())
        loss.by = torch.rand(37)


class Breaks(CrossEntropy):
    """Asks python for a number, where a graph ends."""

    def per_token(self, student, teacher, labels):
        return super().per_token(student, teacher, labels) * (1 + bool(labels.sum().item() > 0))


def test_a_loss_of_no_single_graph_runs_uncompiled_and_says_so(caplog):
    loss = Breaks()
    assert_same(compiled_values_of([loss], CHUNK), values_of([loss]), *chunk())
    assert "losses run uncompiled, as compiling them failed" in caplog.text


def test_where_compiling_fails_losses_run_all_the_same(monkeypatch, caplog):
    from torch._dynamo.exc import TorchDynamoException

    def broken(function, **options):
        def call(*arguments):
            raise TorchDynamoException("no compiler here\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    loss = ForwardKL()
    assert_same(compiled_values_of([loss], CHUNK), values_of([loss]), *chunk())
    assert "losses run uncompiled, as compiling them failed: no compiler here" in caplog.text
    assert "much more" not in caplog.text


def test_a_step_of_the_engine():
    made = {}

    def values(terms):
        labels = tuple(term.label for term in terms)
        if labels not in made:
            made[labels] = compiled_values_of([term.loss for term in terms], 11)
        return made[labels]

    terms = [term(ForwardKL(temperature=2.0)), term(CrossEntropy(), 0.3, on="all")]
    options = {
        "teacher": Held(cases.model(seed=1, double=False)),
        "selection": Hardest(keep=0.3),
        "micro_batch": 3,
    }
    student = cases.model(double=False)
    fast = engine.step(student, cases.ROWS["packed"], terms, values=values, **options)
    plain = engine.step(student, cases.ROWS["packed"], terms, **options)
    assert fast.terms == pytest.approx(plain.terms, rel=1e-6)
    for name, exact in plain.gradients.items():
        torch.testing.assert_close(fast.gradients[name], exact, rtol=1e-5, atol=1e-5)


def test_a_teacher_that_knows_some_ids(caplog):
    losses = [ForwardKL(temperature=2.0), CrossEntropy()]
    fast, plain = compiled_values_of(losses, CHUNK), values_of(losses)
    for tokens in (16, 7):
        student, teacher, labels, weights = chunk(tokens, terms=2)
        known, ids = teacher.log_softmax(-1).topk(5)
        others = (1 - known.exp().sum(-1, keepdim=True)).log()
        logs = torch.cat([known, others], -1)
        assert_same(fast, plain, student, SparseLogits(ids, logs), labels, weights)
        tempered = SparseLogits(ids, logs, {2.0: 2 * teacher.log_softmax(-1)[:, 0]})
        assert_same(fast, plain, student, tempered, labels, weights)
    assert "uncompiled" not in caplog.text
