import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from kdcore_evals import Agreement, ForwardKL, Perplexity, Samples
from pydantic import ValidationError

from kdcore import RunError

ROWS = object()


class StubRun:
    """Answers `evaluate` with given sums."""

    def __init__(self, sums, teacher=None):
        self.sums, self.teacher, self.asked = sums, teacher, []

    def rows(self, split):
        assert split == "validation"
        return ROWS

    def evaluate(self, rows, losses, teacher=None):
        assert rows is ROWS
        self.asked.append(([type(loss) for loss in losses], teacher))
        return self.sums


def test_perplexity():
    run = StubRun({"tokens": 100, "bytes": 400, "nll": 250.0})
    scores = Perplexity().measure(run)
    assert scores == pytest.approx(
        {"nll": 2.5, "perplexity": math.exp(2.5), "bits_per_byte": 250 / math.log(2) / 400}
    )
    assert run.asked == [([], None)]
    assert Perplexity.always and not Agreement.always and not Samples.always


def test_perplexity_of_a_ruined_model():
    scores = Perplexity().measure(StubRun({"tokens": 1, "bytes": 0, "nll": 1e4}))
    assert scores["perplexity"] == math.inf


def test_nothing_to_measure():
    with pytest.raises(RunError, match="no token to predict"):
        Perplexity().measure(StubRun({"tokens": 0, "bytes": 0, "nll": 0.0}))


def test_agreement():
    teacher = SimpleNamespace(gives_logits=lambda: True)
    run = StubRun({"tokens": 50, "bytes": 9, "nll": 1.0, "agreement": 30, "kl": 10.0}, teacher)
    assert Agreement().measure(run) == {"agreement": 0.6, "kl": 0.2}
    assert run.asked == [([ForwardKL], teacher)]
    assert Agreement.needs_teacher


@pytest.mark.parametrize("teacher", [None, SimpleNamespace(gives_logits=lambda: False)])
def test_agreement_needs_logits(teacher):
    with pytest.raises(RunError, match="needs a teacher that gives logits"):
        Agreement().measure(StubRun({}, teacher))


def test_forward_kl_is_the_textbooks():
    student, teacher = torch.randn(2, 5, 9, dtype=torch.float64) * 3
    p, q = teacher.softmax(-1), student.softmax(-1)
    values = ForwardKL().per_token(student, teacher, torch.zeros(5))
    torch.testing.assert_close(values, (p * (p / q).log()).sum(-1))


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8), st.integers(0, 99))
def test_forward_kl_is_never_negative(logits, seed):
    teacher = torch.tensor([logits], dtype=torch.float64)
    drawn = torch.Generator().manual_seed(seed)
    student = teacher + torch.randn(teacher.shape, dtype=torch.float64, generator=drawn)
    assert ForwardKL().per_token(student, teacher, torch.zeros(1)).item() >= -1e-12
    assert ForwardKL().per_token(teacher, teacher, torch.zeros(1)).item() == 0


def test_samples():
    tokenizer = tiny.byte_tokenizer()
    student = tiny.model(vocabulary=len(tokenizer)).train()
    run = SimpleNamespace(student=student, tokenizer=tokenizer, data=tiny.Lines())
    state = torch.get_rng_state()
    samples = Samples(prompts=["Once", "She had"], max_new_tokens=5, top_k=10, top_p=0.9)
    scores = samples.measure(run)
    assert list(scores) == ["sample/1", "sample/2"]
    assert scores["sample/1"].startswith("Once") and len(scores["sample/1"]) > 4
    assert scores["sample/2"].startswith("She had")
    assert samples.measure(run) == scores
    assert student.training and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": []},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_new_tokens": 0},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ValidationError):
        Samples(**options)


def test_agreement_with_likelihoods_only_is_a_fault_of_the_recipe():
    knows, not_ = (SimpleNamespace(name="some", gives_logits=lambda x=x: x) for x in (True, False))
    assert [*Agreement().faults(SimpleNamespace(teacher=knows))] == []
    assert [*Agreement().faults(SimpleNamespace(teacher=None))] == []  # told otherwise
    [said] = Agreement().faults(SimpleNamespace(teacher=not_))
    assert said == "the eval \"agreement\" needs logits, and the teacher 'some' gives none"
