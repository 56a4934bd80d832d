"""How long a stage takes: operations as torch counts them, and what is made of them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode
from whole_runs import recipe_text

from kdcore.analysis import hours
from kdcore.analysis.hours import Rates, measured, predicted
from kdcore.analysis.plan import plans_of
from kdcore.analysis.work import NOTHING, Cost, Work, shape_of
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.runner import RunRequest, run_all

ROWS, TIME = 4, 32
RATES = Rates("cpu", 1e9, 1e9, 30e-6)

RECIPE = recipe_text(
    {
        "tokenizer.vocab_size": 280,
        "train.steps": 40,
        "train.eval_every": 10,
    }
)


def counted(model, step):
    """Operations by torch's own counter."""
    ids = torch.randint(0, 37, (ROWS, TIME))
    with FlopCounterMode(display=False) as counter:
        step(model(input_ids=ids, use_cache=False).logits)
    return counter.get_total_flops()


def work_of(model, **changes):
    about = dict(micro_batch=ROWS, time=TIME, checkpointing=False, scores=False)
    return Work(**{"student": shape_of(model), "teachers": (), "stored": (), **about, **changes})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_operations_are_those_that_torch_counts(kind):
    model = tiny.model(kind, 37, 0, attn_implementation="eager")
    work, tokens = work_of(model), ROWS * TIME
    # torch counts the whole square of attention, of which half is needed.
    trained = counted(model, lambda logits: logits.sum().backward())
    assert work.step(tokens, 2 * TIME).operations == pytest.approx(trained, rel=0.06)
    with torch.no_grad():
        forward = counted(model, lambda logits: None)
    assert work.reading(tokens, 2 * TIME).operations == pytest.approx(forward, rel=0.06)
    teacher = replace(work, teachers=[work.student])
    more = teacher.step(tokens, 2 * TIME).operations - work.step(tokens, 2 * TIME).operations
    assert more == pytest.approx(forward, rel=0.06)


def test_frozen_weights_and_activations_made_again():
    model = tiny.model("llama", 37, 0)
    work = work_of(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    frozen = work_of(model)
    own = work.student.forward(100, 16)
    assert work.step(100, 16).operations - frozen.step(100, 16).operations == pytest.approx(own)
    again = replace(work, checkpointing=True)
    assert again.step(100, 16).operations - work.step(100, 16).operations == pytest.approx(own)
    assert frozen.student.parameters == 0 and frozen.step(100, 16).bytes < work.step(100, 16).bytes


def test_the_speed_of_one_thread_leaves_out_the_time_of_others(monkeypatch):
    clocks = SimpleNamespace(
        process_time=iter(range(10**6)).__next__,  # a second at each look
        perf_counter=iter(range(0, 10**9, 1000)).__next__,
    )
    monkeypatch.setattr(hours, "time", clocks)
    for threads, seconds in ((1, 1), (2, 1000)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert hours._fastest(lambda: None, torch.device("cpu")) == seconds


def test_a_gpu_computes_while_its_host_prepares():
    cost = Cost(1e9, 1e9, 1e6)
    busy = 1 / 0.55 + 1 / 0.85
    assert Rates("cuda", 1e9, 1e9, 5e-6).seconds(cost) == pytest.approx(max(busy, 5.0))
    assert RATES.seconds(cost) == pytest.approx(1 / 0.53 + 1 / 0.43 + 30.0)
    assert (cost + cost.times(2)) == Cost(3e9, 3e9, 3e6) and NOTHING + cost == cost


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


def planned(host, tmp_path, monkeypatch, text=RECIPE, sets=()):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hours, "rates_of", lambda work, precision: RATES)
    (tmp_path / "r.toml").write_text(text)
    recipe = read_recipe("r.toml", host, sets=sets)
    return recipe, list(plans_of(recipe))


@pytest.mark.slow
def test_twice_the_steps_take_twice_as_long_and_evaluations_count(host, tmp_path, monkeypatch):
    def seconds(*sets):
        _, (plan,) = planned(host, tmp_path, monkeypatch, sets=["train.eval_first=false", *sets])
        found = predicted(plan)
        assert found.how == "predicted" and "1 GFLOP/s" in found.why
        return found.seconds

    once, twice = seconds(), seconds("train.steps=80")
    assert twice == pytest.approx(2 * once)
    rare = seconds("train.eval_every=40")
    assert 0 < seconds("train.eval_every=20") - rare < 0.5 * (once - rare)


def test_what_is_not_known_is_not_predicted():
    assert predicted(SimpleNamespace(estimate=None)) is None


@pytest.mark.slow
def test_a_store_is_filled_once_and_not_in_each_step(host, tmp_path, monkeypatch):
    stages = """
[stage.big]
[stage.small.teacher]
use = {use}
[[stage.small.loss]]
use = "kl"
"""
    plain = RECIPE + stages.format(use='"hf"\nmodel = "@big"')
    stored = '"cached"\nkind = "topk"\nk = 8\nteacher = {use = "hf", model = "@big"}'
    found = {}
    for name, text in (("plain", plain), ("stored", RECIPE + stages.format(use=stored))):
        _, plans = planned(host, tmp_path, monkeypatch, text)
        found[name] = plans[-1].estimate.work
    assert (len(found["plain"].teachers), len(found["plain"].stored)) == (1, 0)
    assert (len(found["stored"].teachers), len(found["stored"].stored)) == (0, 1)


@pytest.mark.slow
def test_a_teacher_counts_where_it_is_read(host, tmp_path, monkeypatch):
    stages = """
[stage.big]
[stage.small]
teacher = {use = "hf", model = "@big"}
"""
    kl, agreement = (
        '[[stage.small.loss]]\nuse = "kl"\n',
        '[[stage.small.eval]]\nuse = "agreement"\n',
    )
    for more, trains, evaluates in ((kl, 1, 0), (agreement, 0, 1), (kl + agreement, 1, 1)):
        _, plans = planned(host, tmp_path, monkeypatch, RECIPE + stages + more)
        work = plans[-1].estimate.work
        assert (len(work.teachers), len(work.evaluated)) == (trains, evaluates)
        alone = replace(work, evaluated=())
        assert (work.reading(100, 16) == alone.reading(100, 16)) is not bool(evaluates)


@pytest.mark.slow
def test_writing_is_predicted(host, tmp_path, monkeypatch):
    text = RECIPE + '\n[rollout]\nuse = "student"\nprompt_tokens = 4\nmax_new_tokens = 8\n'
    _, (without,) = planned(host, tmp_path, monkeypatch)
    _, (written,) = planned(host, tmp_path, monkeypatch, text)
    assert predicted(written).seconds > 1.2 * predicted(without).seconds


@pytest.mark.slow
def test_real_steps_leave_nothing_behind(host, tmp_path, monkeypatch):
    recipe, (plan,) = planned(host, tmp_path, monkeypatch)
    found = measured(recipe, plan, host, tmp_path / "runs", predicted(plan))
    assert found.how == "measured" and "s after 2 to warm up, and an evaluation of" in found.why
    assert (
        found.seconds > 0
        and found.cpu_seconds > 0
        and [path.name for path in tmp_path.iterdir()] == ["r.toml"]
    )


@pytest.mark.slow
def test_what_only_the_first_evaluation_loads_is_left_out(host, tmp_path, monkeypatch):
    recipe, (plan,) = planned(host, tmp_path, monkeypatch)
    clock, costs = [0.0], [1.5, 0.25, 8.0, 8.5]  # CPU seconds of evaluations
    monkeypatch.setattr(hours, "_now", lambda device: (clock[0], clock[0]))
    monkeypatch.setattr(
        hours, "run_evals", lambda run: clock.__setitem__(0, clock[0] + costs.pop(0))
    )
    monkeypatch.setattr(hours, "_take", lambda trainer, steps: setattr(trainer.run, "step", 40))

    def evaluation():
        found = measured(recipe, plan, host, tmp_path / "runs", predicted(plan))
        return found.cpu_seconds / 5

    assert evaluation() == 0.25
    assert evaluation() == 8.0  # long enough for the start not to matter
    assert costs == [8.5]


def test_measured_evaluations_count_as_often_as_there_are_some(host, tmp_path, monkeypatch):
    trial = hours._Trial(5, step=(0.5, 0.25), evaluation=(3.0, 2.0), on_gpu=False)
    monkeypatch.setattr(hours, "_tried", lambda *asked, keeps: (trial, trial))
    recipe, (plan,) = planned(host, tmp_path, monkeypatch)
    found = measured(recipe, plan, host, tmp_path, predicted(plan))
    times = 4 + 1  # of 40 steps, each 10, and before the first
    assert (found.seconds, found.cpu_seconds) == (40 * 0.5 + times * 3, 40 * 0.25 + times * 2)
    monkeypatch.setattr(hours, "_tried", lambda *asked, keeps: (replace(trial, on_gpu=True), trial))
    assert measured(recipe, plan, host, tmp_path, predicted(plan)).cpu_seconds is None


STORED = """
[stage.big]
[stage.small.selection]
use = "rho"
keep = 0.5
reference = {use = "cached", teacher = {use = "hf", model = "@big"}}
"""


def test_the_first_epoch_and_the_first_evaluation_fill_a_store(host, tmp_path, monkeypatch):
    first = hours._Trial(5, step=(0.5, 0.25), evaluation=(3.0, 2.0), on_gpu=False)
    later = hours._Trial(5, step=(0.1, 0.05), evaluation=(1.0, 0.5), on_gpu=False)
    asked = []
    monkeypatch.setattr(
        hours, "_tried", lambda *of, keeps: (asked.append(keeps), (first, later))[1]
    )
    recipe, plans = planned(host, tmp_path, monkeypatch, RECIPE + STORED, ["train.steps=60"])
    plan, evaluations = plans[-1], 6 + 1  # each 10 steps, and before the first
    filling = -(-plan.in_epoch // plan.stage.train.drawn)
    assert 0 < filling < 60
    found = measured(recipe, plan, host, tmp_path, predicted(plan))
    assert asked == [True] and found.how == "measured" and "once stores are filled" in found.why
    seconds = 0.5 * filling + 0.1 * (60 - filling) + 3 + (evaluations - 1)
    cpu = 0.25 * filling + 0.05 * (60 - filling) + 2 + (evaluations - 1) * 0.5
    assert (found.seconds, found.cpu_seconds) == (pytest.approx(seconds), pytest.approx(cpu))


@pytest.mark.slow
def test_stores_are_filled_apart_from_those_of_the_runs(host, tmp_path, monkeypatch):
    shorter = ["train.steps=12", "train.eval_every=12"]
    recipe, (before, plan) = planned(host, tmp_path, monkeypatch, RECIPE + STORED, shorter)
    run_all(RunRequest("r.toml", tmp_path / "runs", tuple(shorter), stage=before.stage.name), host)
    there = sorted(tmp_path.rglob("*"))
    asked = []
    trial = hours._trial
    monkeypatch.setattr(
        hours,
        "_trial",
        lambda *of, twice: (asked.append((of[-1], twice)), trial(*of, twice=twice))[1],
    )
    found = measured(recipe, plan, host, tmp_path / "runs", predicted(plan))
    assert found.how == "measured" and found.cpu_seconds > 0
    assert asked == [(25, False), (10, False)]  # the second trial has the steps of the first
    assert sorted(tmp_path.rglob("*")) == there


def test_a_stage_before_that_is_not_finished_is_reported(host, tmp_path, monkeypatch):
    text = RECIPE + '\n[stage.big]\n[stage.small.student]\nmodel = "@big"\n'
    recipe, (_, plan) = planned(host, tmp_path, monkeypatch, text)
    guess = predicted(plan)
    found = measured(recipe, plan, host, tmp_path / "runs", guess)
    assert (found.how, found.seconds) == ("predicted", guess.seconds)
    assert "not measured: " in found.why and "small" not in found.why.partition("not measured")[0]
