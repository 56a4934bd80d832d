import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from kdcore_evals import Agreement, ForwardKL, Perplexity, Samples, TeacherLikelihood
from pydantic import ValidationError

from kdcore import RunError

ROWS = object()


class StubRun:
    """Answers `evaluate` with given sums."""

    def __init__(self, sums, teacher=None, evals=()):
        self.sums, self.teacher, self.asked = sums, teacher, []
        self.recipe = SimpleNamespace(evals=evals)
        self.step, self.scores, self.reads_teacher = 0, {}, True

    def rows(self, split):
        assert split == "validation"
        return ROWS

    def evaluate(self, rows, losses, teacher=None, *, by=None, keep_documents=False):
        assert rows is ROWS
        self.asked.append(([type(loss) for loss in losses], teacher))
        return self.sums


def teacher_of(gives_logits=True, ids_known=None):
    return SimpleNamespace(gives_logits=lambda: gives_logits, ids_known=lambda: ids_known)


SUMS = {"tokens": 50, "bytes": 9, "nll": 100.0, "agreement": 30, "kl": 10.0, "teacher_nll": 75.0}


def measured(run):
    """As the engine does it, evaluation after evaluation."""
    run.scores = {k: v for one in run.recipe.evals for k, v in one.measure(run).items()}
    return run.scores


@pytest.mark.parametrize("order", [1, -1])
def test_perplexity_and_agreement_share_one_pass(order):
    teacher = teacher_of()
    run = StubRun(SUMS, teacher, [Perplexity(), Agreement()][::order])
    for step in (3, 6, 6):
        run.step = step
        found = measured(run)
        assert found["nll"] == 2.0 and found["agreement"] == 0.6 and found["teacher_nll"] == 1.5
    first = ([ForwardKL, TeacherLikelihood], teacher)
    assert run.asked == [first, *[([ForwardKL], teacher)] * 2]


def test_what_an_evaluation_left_behind_that_failed_is_not_used_at_another_step():
    run = StubRun(SUMS, teacher_of(), [Perplexity(), Agreement()])
    run.recipe.evals[0].measure(run)
    run.step, run.sums = 1, {**SUMS, "agreement": 40}
    assert run.recipe.evals[1].measure(run)["agreement"] == 0.8
    assert len(run.asked) == 2


def test_the_teacher_is_measured_once_a_run():
    teacher = teacher_of()
    run = StubRun(SUMS, teacher, [Perplexity()])
    for _ in range(3):
        assert measured(run)["teacher_nll"] == 1.5
        run.sums = {key: each for key, each in SUMS.items() if key != "teacher_nll"}
    assert run.asked == [([TeacherLikelihood], teacher), ([], None), ([], None)]


@pytest.mark.parametrize(
    "teacher, is_read",
    [(None, True), (teacher_of(False), True), (teacher_of(True, 3), True), (teacher_of(), False)],
)
def test_a_teacher_that_cannot_tell_costs_nothing(teacher, is_read):
    run = StubRun({"tokens": 100, "bytes": 400, "nll": 250.0}, teacher, [Perplexity()])
    run.reads_teacher = is_read
    assert "teacher_nll" not in measured(run) and run.asked == [([], None)]


def test_the_likelihood_of_a_teacher():
    logits, labels = torch.randn(2, 5, 9), torch.tensor([3, 0, 8, 1, 1])
    found = TeacherLikelihood().per_token(logits[0], logits[1], labels)
    torch.testing.assert_close(found, -logits[1].log_softmax(-1)[range(5), labels])


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
    teacher = teacher_of(ids_known=3)
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


def test_agreement_with_likelihoods_only_is_an_error_of_the_recipe():
    knows, not_ = (SimpleNamespace(name="some", gives_logits=lambda x=x: x) for x in (True, False))
    assert [*Agreement().faults(SimpleNamespace(teacher=knows))] == []
    assert [*Agreement().faults(SimpleNamespace(teacher=None))] == []  # told otherwise
    [said] = Agreement().faults(SimpleNamespace(teacher=not_))
    assert said == "the eval \"agreement\" needs logits, and the teacher 'some' gives none"
