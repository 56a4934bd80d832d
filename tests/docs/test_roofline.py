"""What benchmarks/roofline.py predicts stands on shapes and operations that are right."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def roofline(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import roofline

    yield roofline
    del sys.modules["roofline"], sys.modules["recipe_shapes"]


NAMES = ["qwen-0.5b", "qwen-1.5b", "qwen-7b", "tinystories", "gpt2", "llama", "babyllama"]
NAMES += ["llama-1b", "llama-8b", "babylm", "smollm2-135m", "smollm2-360m", "qwen-1.5b-half"]


def fresh(shape, device="meta"):
    """A model of the shape."""
    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(shape.kind, **shape.config(), **ends)
        )


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_the_models_but_for_norms_biases_and_positions(roofline, name):
    shape = roofline.MODELS[name]
    counted = sum(p.numel() for p in fresh(shape).parameters())
    assert shape.parameters == pytest.approx(counted, rel=0.005)


@pytest.mark.parametrize(
    "recipe, stage, name",
    [
        ("tinystories_llama", "", "tinystories"),
        ("babyllama", "gpt2", "gpt2"),
        ("babyllama", "llama", "llama"),
        ("babyllama", "student", "babyllama"),
        ("llama3_babylm", "student", "babylm"),
    ],
)
def test_shapes_are_those_of_the_recipes(roofline, recipe, stage, name):
    typed = (
        read_recipe(recipe, PluginManager()).build(stage, {"gpt2": Path(), "llama": Path()}).student
    )
    shape = roofline.MODELS[name]
    assert typed.config.items() <= {"model_type": shape.kind, **shape.config()}.items()


@pytest.mark.slow
def test_rows_of_a_step_are_those_of_the_recipes(roofline):
    for stage in (*roofline.STAGES, *roofline.OTHERS):
        recipe, _, name = stage.name.partition(".")
        found = read_recipe(recipe, PluginManager())
        finals = {each.name: Path() for each in found.stages}
        built = found.build(name, finals)
        train, answers = built.train, max(1, len(stage.writers))
        if train.batch_documents is None:
            assert train.batch == stage.rows
        else:
            documents = train.batch_documents * answers
            assert math.ceil(documents * stage.context / stage.tokens) == stage.rows
        written = built.writing.share * train.drawn if built.rollout and stage.writers else 0
        assert stage.prompts == written, stage.name
        assert stage.checkpointing == train.checkpointing
        assert stage.scored == (getattr(built.selection, "name", None) == "rho")


@pytest.mark.slow
def test_every_recipe_that_needs_a_gpu_is_predicted(roofline):
    """Each of its stages, or one that is the same run."""
    there = {stage.name for stage in (*roofline.STAGES, *roofline.OTHERS)}
    paths = (BENCHMARKS.parent / "recipes").glob("*.toml")
    recipes = {
        path.stem: read_recipe(path.stem, PluginManager())
        for path in paths
        if "quickstart" not in path.stem
    }
    runs = {
        recipe.run_name(stage.name): recipe.identity(stage.name)
        for recipe in recipes.values()
        for stage in recipe.stages
    }
    predicted = {runs[name] for name in there}
    assert not {name for name, run in runs.items() if run not in predicted}


def test_answers_take_a_pass_for_each_of_their_tokens(roofline):
    h100 = roofline.card_of("H100")
    stage = next(each for each in roofline.OTHERS if each.name == "opd_qwen.student")
    found = roofline.predict(stage, h100)
    assert found.seconds - max(found.busy, found.host) == pytest.approx(found.writing)
    twice = roofline.predict(replace(stage, new=2 * stage.new), h100)
    assert twice.writing == pytest.approx(2 * found.writing)
    assert roofline.predict(replace(stage, writers=()), h100).writing == 0


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_operations_are_what_torch_counts(roofline, monkeypatch, kind):
    from torch.utils.flop_counter import FlopCounterMode

    groups = 4 if kind == "gpt2" else 2
    shape = roofline.Model(kind, 128, 512, 2, 4, groups, 640, False, 64)
    monkeypatch.setitem(roofline.MODELS, "small", shape)
    stage = replace(roofline.STAGES[0], student="small", scored=False)
    model, ids = fresh(shape, "cpu"), torch.zeros(2, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    alone = replace(stage, context=0)  # attention is counted in ways that differ
    assert roofline.operations(alone, 32, 32) == pytest.approx(counted.get_total_flops(), rel=0.03)
    attention = roofline.operations(replace(stage, context=16), 32, 32)
    assert attention - roofline.operations(alone, 32, 32) == 6 * 2 * 128 * 32 * 16


def test_small_models_wait_for_the_host_and_large_ones_for_the_gpu(roofline):
    h100 = roofline.card_of("NVIDIA H100 80GB HBM3")
    found = {stage.name: roofline.predict(stage, h100) for stage in roofline.STAGES}
    waiting = {name for name, one in found.items() if one.host > one.busy}
    assert waiting == {"rho_qwen", "tinystories_llama"}
    assert all(0 < one.used < roofline.OF_PEAK for one in found.values())


def test_a_faster_card_is_never_slower(roofline):
    a100, h100, h200 = (roofline.card_of(name) for name in ("A100", "H100", "H200"))
    for stage in roofline.STAGES:
        seconds = [roofline.predict(stage, card).seconds for card in (a100, h100, h200)]
        assert seconds == sorted(seconds, reverse=True)


def test_what_does_not_fit_is_said_so(roofline):
    t4 = roofline.card_of("Tesla T4")
    student = next(stage for stage in roofline.STAGES if stage.name == "qwen_kl_sft.student")
    assert not roofline.predict(student, t4).rows
    assert "| qwen_kl_sft.student | T4 | does not fit |" in roofline.table([t4])


def test_the_driver_s_names_of_cards(roofline):
    assert roofline.card_of("NVIDIA GeForce RTX 4090").name == "RTX 4090"
    assert roofline.card_of("NVIDIA A100-SXM4-80GB").name == "A100"
    assert roofline.card_of("NVIDIA A10G").name == "A10G"
    assert roofline.card_of("Radeon") is None


def test_what_it_prints_is_marked(roofline, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["roofline.py", "H100"])
    roofline.main()
    said = capsys.readouterr().out
    count = len(roofline.STAGES + roofline.OTHERS)
    assert said.startswith("Predicted, not measured") and said.count("| H100 |") == count
