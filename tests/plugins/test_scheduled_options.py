"""Options that change during a run: temperatures of losses, and what selections keep."""

import math
import shutil

import engine
import given
import pytest
import tomli
import torch
from kdcore_losses import ForwardKL, JensenShannon
from kdcore_selections import GlobalSelection, Hardest, Not
from pydantic import ValidationError

from kdcore import Schedule, describe, options_of, tensor_now, value_now
from kdcore.cli.main import plugin_manager
from kdcore.errors import RecipeError
from kdcore.objective.compiled_losses import compiled_values_of
from kdcore.objective.losses import values_of
from kdcore.recipe.describe import objective_formula, resolved
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow

ROWS = given.packed_rows()
STEPS = 5
COOLING = {"start": 4.0, "end": 1.0, "until": 0.5}
RECIPE = """
[student]
model = "s"
[data]
use = "text"
path = "p"
[teacher]
use = "hf"
model = "t"
[[loss]]
use = "kl"
temperature = {start = 4.0, end = 1.0, until = 0.5}
[selection]
use = "hardest"
keep = {start = 1.0, end = 0.5}
[train]
lr = 1e-3
steps = 4
"""


@pytest.fixture(scope="module")
def host():
    return plugin_manager(None)


def recipe(tmp_path, host, *sets):
    (tmp_path / "r.toml").write_text(RECIPE)
    return read_recipe(str(tmp_path / "r.toml"), host, sets=sets)


def gradients_at(loss, step, **options):
    """Of one step of a run of `STEPS`."""
    made = engine.trainer(
        given.model(double=True, seed=1),
        ROWS * STEPS,
        [engine.term(loss)],
        teacher=engine.Held(given.model(double=True, seed=2)),
        batch=len(ROWS),
        steps=STEPS,
        **options,
    )
    made.step(step)
    return made.optimizer.seen


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("made", [ForwardKL, JensenShannon])
def test_a_step_is_that_of_the_number_it_has_then(made, step):
    scheduled = gradients_at(made(temperature=Schedule(**COOLING)), step)
    number = Schedule(**COOLING).at((step - 1) / STEPS)
    for one, other in zip(scheduled, gradients_at(made(temperature=number), step), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_what_is_kept_follows_a_schedule():
    selection = Hardest(keep=Schedule(start=1.0, end=0.2))
    made = engine.trainer(
        given.model(), ROWS * STEPS, [engine.term()], selection=selection, batch=8, steps=STEPS
    )
    kept = []
    for step in range(1, STEPS + 1):
        _, choices = made.gradients(step, made.terms_of(step))
        kept.append(
            int(sum(choices.kept))
            - math.ceil((1 - 0.8 * (step - 1) / STEPS) * int(choices.valid) - 1e-9)
        )
    assert kept == [0] * STEPS


def test_nested_components_are_moved_too():
    score = ForwardKL(temperature=Schedule(start=2.0, end=1.0))
    selection = Not(of=GlobalSelection(keep=Schedule(start=0.5, end=0.1), score=score))
    made = engine.trainer(given.model(), ROWS, [engine.term()], selection=selection, steps=10)
    made.move_schedules(5)
    assert value_now(score.temperature) == 1.5
    assert float(tensor_now(score.temperature)) == 1.5
    assert value_now(selection.of.share) == pytest.approx(0.3)


def test_before_a_run_an_option_stands_at_its_beginning_and_numbers_are_themselves():
    falling = Schedule(start=4.0, end=1.0)
    assert (value_now(falling), tensor_now(falling)) == (4.0, 4.0)
    assert (value_now(2.0), tensor_now(2.0)) == (2.0, 2.0)
    student, teacher, labels = torch.randn(3, 5), torch.randn(3, 5), torch.arange(3)
    torch.testing.assert_close(
        ForwardKL(temperature=falling).per_token(student, teacher, labels),
        ForwardKL(temperature=4.0).per_token(student, teacher, labels),
    )


def test_an_evaluation_reads_where_the_run_stands():
    falling, seen = Schedule(start=4.0, end=1.0), []

    class Looks(engine.Selection):
        name = "looks"

        def measure(self, run):
            seen.append(value_now(falling))
            return {}

    made = engine.trainer(
        given.model(),
        ROWS * 3,
        [engine.term(ForwardKL(temperature=falling))],
        teacher=engine.Held(given.model(seed=1)),
        steps=3,
        evals=[Looks()],
        eval_every=1,
        save_every=100,
        eval_first=True,
    )
    made.save = lambda: None
    made.train()
    assert seen == pytest.approx([4.0, 3.0, 2.0, 1.0])


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_losses_are_compiled_once(caplog):
    from torch._dynamo.utils import counters

    falling = Schedule(start=4.0, end=1.0)
    falling.begin(torch.device("cpu"))
    loss = ForwardKL(temperature=falling)
    fast, plain = compiled_values_of([loss], 8), values_of([loss])
    given_student, teacher = torch.randn(2, 8, 37)
    parts = teacher, torch.arange(8), torch.ones(1, 8)
    before = counters["stats"]["unique_graphs"]
    for done in (0.0, 0.3, 0.7, 1.0):
        falling.move(done)
        for found, exact in zip(
            fast(given_student.clone(), *parts), plain(given_student, *parts), strict=True
        ):
            torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] - before == 1
    assert "uncompiled" not in caplog.text


def test_the_plan_has_both_ends(tmp_path, host):
    stage = recipe(tmp_path, host).build()
    at = "(4 + (1 - 4) * min(done / 0.5, 1))"
    assert objective_formula(stage.terms, selects=True) == (
        f"loss = 1 * mean_kept({at}**2 * KL(p({at}), q({at})))"
    )
    assert describe(stage.selection) == "hardest(keep=(1 + (0.5 - 1) * min(done / 1, 1)))"
    (option, *_) = [one for one in options_of(ForwardKL) if one.name == "temperature"]
    assert (option.type, option.default) == ("float | schedule", 1.0)


def test_a_schedule_is_written_out_again(tmp_path, host):
    tables = tomli.loads(resolved(recipe(tmp_path, host).build(), "r"))
    assert tables["loss"][0]["temperature"] == COOLING
    assert tables["selection"]["keep"] == {"start": 1.0, "end": 0.5, "until": 1.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "loss.kl.temperature={start=4.0, end=0.0}",
            "both ends of temperature should be greater than 0, not 4 and 0",
        ),
        ("selection.keep={start=1.5, end=0.5}", "both ends of keep should be at most 1"),
        ("loss.kl.temperature={start=4.0}", "a schedule needs end: a number"),
        ("loss.kl.temperature={start=4.0, end=1.0, until=2.0}", "until should be at most 1"),
        ("loss.kl.temperature={start=4.0, stop=1.0}", "a schedule has no option 'stop'"),
        (
            'loss.kl.temperature="4"',
            'temperature should be a number or {start, end, until}, not "4"',
        ),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said(tmp_path, host, change, said):
    with pytest.raises(RecipeError) as raised:
        recipe(tmp_path, host, change).build()
    assert said in str(raised.value)


def test_a_teacher_of_k_ids_serves_no_schedule(tmp_path, host):
    cached = 'teacher={use="cached", kind="topk", teacher={use="hf", model="t"}}'
    with pytest.raises(RecipeError, match="the loss 'kl' changes its temperature, or has several"):
        recipe(tmp_path, host, cached).build()


def test_bounds_hold_at_both_ends():
    for ends in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValidationError, match="greater than 0"):
            ForwardKL(temperature=Schedule(start=ends[0], end=ends[1]))
