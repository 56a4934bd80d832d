"""Trainers that really learn, and what is asked of them afterwards."""

from types import SimpleNamespace

import engine
import given
import torch
from engine import Held, term
from kdcore_losses import ForwardKL

from kdcore.training.setup import optimizer_of, rate_of

ROWS = given.packed_rows()
TEACHER = given.model(seed=1)


class Eval:
    """Notes when it was asked, and in which mode the student was left."""

    name = "asked"

    def __init__(self):
        self.steps = []

    def measure(self, run):
        self.steps.append(run.step)
        return {"eval/asked": float(run.step)}


def trainer(
    folder,
    *,
    rows=ROWS,
    steps=6,
    batch=4,
    selection=None,
    terms=None,
    micro_batch=3,
    double=False,
    **options,
):
    """Steps that really learn."""
    student, teacher = given.model(), TEACHER
    if double:
        student, teacher = given.in_double(student), given.in_double(teacher)
    made = engine.trainer(
        student,
        rows,
        terms or [term(ForwardKL(temperature=2.0)), term(weight=0.5)],
        teacher=Held(teacher),
        selection=selection,
        batch=batch,
        micro_batch=micro_batch,
        steps=steps,
        folder=folder,
        order=engine.Order,
        optimizer=SimpleNamespace(param_groups=[]),
        **{"lr": 0.01, "clip": 1.0, "log_every": 2, "save_every": 100, "eval_every": 100} | options,
    )
    made.optimizer = optimizer_of(made.run.recipe.train, student)
    made.checkpoints.optimizer = made.optimizer
    made.rate = rate_of(made.run.recipe.train, steps)
    return made


def weights(made):
    return [p.detach().clone() for p in made.run.student.parameters()]


def assert_equal(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def records(made):
    return [event["record"] for event in made.host.of("kdcore_log")]
