import engine
import given
import pytest
import torch
from engine import Held, term
from kdcore_losses import ForwardKL
from kdcore_selections import Entropy, Hardest, Random, Rho

from kdcore import Selection

ROWS = given.packed_rows()
STUDENT, TEACHER, REFERENCE = (given.model(seed=seed) for seed in range(3))
VALID = 43


class Trunks:
    """How often the student's trunk ran, and with gradient."""

    def __init__(self, monkeypatch):
        self.gradients = []
        student = given.proved(STUDENT)
        inner = type(student).states

        def states(this, batch):
            if this is student:
                self.gradients.append(torch.is_grad_enabled())
            return inner(this, batch)

        monkeypatch.setattr(type(student), "states", states)


def trainer(selection, **options):
    terms = [term(ForwardKL())]
    return engine.trainer(
        STUDENT, ROWS, terms, teacher=Held(TEACHER), selection=selection, **options
    )


@pytest.mark.parametrize(
    ("options", "gradients"),
    [
        ({"micro_batch": 8}, [True]),
        ({"micro_batch": 3}, [False] * 3 + [True] * 3),
        ({"micro_batch": 3, "scope": "micro_batch"}, [True] * 3),
    ],
)
def test_nothing_runs_twice_without_need(options, gradients, monkeypatch):
    trunks = Trunks(monkeypatch)
    trainer(Hardest(keep=0.3), **options).step(1)
    assert trunks.gradients == gradients


def test_selections_run_without_gradient():
    seen = []

    def keep(tokens):
        seen.append((torch.is_grad_enabled(), tokens.student_nll().requires_grad))
        return tokens.student_nll() > 0

    for micro_batch in (8, 3):
        trainer(engine.Keeps(keep), micro_batch=micro_batch).step(1)
    assert seen == [(False, False)] * 2


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_selections_run_in_full_precision(micro_batch):
    """A reference that somebody wrote is not to be rounded by the student's autocast."""
    seen = []

    def keep(tokens):
        seen.append(torch.is_autocast_enabled("cpu"))
        return tokens.labels > 0

    made = trainer(engine.Keeps(keep), micro_batch=micro_batch)
    made.run.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    made.step(1)
    assert seen == [False]


@pytest.mark.parametrize("micro_batch", [8, 3])
@pytest.mark.parametrize("scope", ["step", "micro_batch"])
def test_the_record_says_what_was_kept(micro_batch, scope):
    made = trainer(Hardest(keep=0.3), micro_batch=micro_batch, scope=scope)
    made.step(1)
    record = made.recorder.record(0.1)
    wanted = 13 if scope == "step" or micro_batch == 8 else 6 + 2 + 6
    assert record.kept == pytest.approx(wanted / VALID)
    assert record.tokens == VALID
    selection = record.selection
    assert set(selection) == {"threshold", "excess_kept", "excess_dropped"}
    assert selection["excess_dropped"] < selection["threshold"] < selection["excess_kept"]


def test_a_selection_that_ranks_nothing_logs_no_threshold():
    made = trainer(engine.Keeps(lambda tokens: tokens.labels % 2 == 1))
    made.step(1)
    record = made.recorder.record(0.1)
    assert record.selection == {}
    assert 0 < record.kept < 1


def test_without_a_selection_everything_is_kept():
    made = trainer(None)
    made.step(1)
    record = made.recorder.record(0.1)
    assert (record.kept, record.selection) == (1.0, {})


def test_random_draws_again_at_each_step_and_in_each_micro_batch():
    def kept(step, **options):
        watched = engine.Watched(Random(keep=0.3))
        trainer(watched, **options).step(step)
        return watched.kept

    assert kept(1) == kept(1, micro_batch=3) == kept(1)
    assert kept(1, steps=2) != kept(2, steps=2, order=Repeated)
    within = kept(1, micro_batch=1, scope="micro_batch")
    positions = [sorted(p for r, p in within if r == row) for row in (0, 5, 6, 7)]
    assert len({tuple(p) for p in positions}) > 1


class Repeated(engine.InOrder):
    """The same rows at every step."""

    def step(self, step):
        return super().step(1)


def test_a_selection_that_keeps_nothing_trains_nothing():
    nothing = engine.Keeps(lambda tokens: tokens.labels < 0)
    for micro_batch in (8, 3):
        found = engine.step(STUDENT, ROWS, [term()], selection=nothing, micro_batch=micro_batch)
        assert found.terms == {"ce": 0.0}
        assert not any(gradient.any() for gradient in found.gradients.values())


@pytest.mark.parametrize(
    "selection",
    [
        Rho(keep=0.3, reference=Held(REFERENCE)),
        Hardest(keep=0.3),
        Entropy(keep=0.3),
        Entropy(keep=0.3, of="teacher"),
        Random(keep=0.3),
    ],
)
def test_the_head_and_the_losses_run_on_kept_rows_only(selection: Selection):
    seen = []

    class Counting(ForwardKL):
        def per_token(self, student, teacher, labels):
            seen.append(len(student))
            return super().per_token(student, teacher, labels)

    for micro_batch in (8, 3):
        seen.clear()
        options = {"selection": selection, "micro_batch": micro_batch, "chunk": 100}
        engine.step(STUDENT, ROWS, [term(Counting())], teacher=Held(TEACHER), **options)
        assert sum(seen) == 13
