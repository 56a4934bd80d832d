"""Every recipe that is shipped for CPUs: six steps of four rows on the fake device and a CPU."""

import math

import pytest

from fake_cuda.scenario import joined, on_cpu, on_device, python, records, report, sets

pytestmark = pytest.mark.slow

FEW = {"train__steps": 6, "train__batch": 4}
SIX = sets(
    **FEW,
    train__precision="fp32",
    train__eval_rows=8,
    train__eval_first=False,
    train__log_every=100,
    train__eval_every=100,
    train__save_every=100,
)

# What takes long and is no part of what is compared: many documents, long answers.
FACTS = sets(eval__facts__samples=2, eval__facts__max_new_tokens=8)
STORIES, TASKS = {"data__stories": 200}, {"data__tasks": 200}
NOISY = {"data__source__stories": 200}


def stages(*names: str, **options: object) -> list[str]:
    """`--set` for each of these stages."""
    return sets(**{f"stage__{n}__{key}": each for n in names for key, each in options.items()})


RECIPES = {
    "quickstart": [*FACTS, *sets(**STORIES), *stages("teacher", **FEW)],
    "quickstart_rho": [
        *sets(**NOISY),
        *stages("reference", **FEW, **STORIES),
    ],
    "cpu/babyllama": [
        *stages("llama", "student", "ce", **FEW),
        # CUDA draws dropout in another order.
        *stages(
            "gpt2",
            student__config__resid_pdrop=0,
            student__config__embd_pdrop=0,
            student__config__attn_pdrop=0,
        ),
        *stages("llama", student__config__attention_dropout=0),
    ],
    "cpu/cross_tokenizer": [
        *sets(**STORIES),
        *stages("teacher", "gold", **FEW),
        *stages("alm", "seqkd", use="none"),
    ],
    "cpu/hidden_qwen": [
        *stages("base", **FEW, **STORIES),
        *stages("teacher", **FEW, **TASKS),
    ],
    "cpu/llama3_babylm": [
        *sets(**STORIES),
        *stages("teacher", **FEW),
        *stages("student", **FEW, train__eval_rows=8),
    ],
    "cpu/prune_and_distil": [
        *FACTS,
        *sets(**STORIES),
        *stages("teacher", "student", "fresh", **FEW),
    ],
    "cpu/mix_domains": [
        *stages("tasks", **FEW, **TASKS),
        *stages("stories", **FEW, **STORIES),
    ],
    "cpu/qwen_kl_sft": [
        *stages("base", **FEW, **STORIES),
        *stages("teacher", **FEW, **TASKS),
        *stages(
            *("student", "ce", "only_kl", "finetune_first"),
            eval__rouge__rows=2,
            eval__rouge__max_new_tokens=8,
        ),
    ],
    "cpu/rho_qwen": [*sets(**NOISY), *stages("reference", **STORIES)],
    "cpu/tinystories_llama": [*FACTS, *sets(eval__samples__max_new_tokens=8, **STORIES)],
}

WITH_HALF = {
    # On a GPU a teacher, and the model beneath an adapter, are half, on a CPU float32.
    "quickstart.kd",
    "quickstart_rho.rho60",
    "quickstart_rho.rho30",
    "babyllama_cpu.student",
    "cross_tokenizer_cpu.kd",
    "cross_tokenizer_cpu.gold",
    "hidden_qwen_cpu.teacher",
    "hidden_qwen_cpu.student",
    "hidden_qwen_cpu.logits",
    "llama3_babylm_cpu.student",
    "mix_domains_cpu.student",
    "prune_and_distil_cpu.student",
    "prune_and_distil_cpu.fresh",
    "qwen_kl_sft_cpu.teacher",
    "qwen_kl_sft_cpu.ce",
    "qwen_kl_sft_cpu.student",
    "qwen_kl_sft_cpu.only_kl",
    "qwen_kl_sft_cpu.finetune_first",
    "rho_qwen_cpu.rho",
}

WAITS = {
    # How often the host waits for the device in a step, where it does: this may only become less.
    # Each step fills its cache, which is on the disk.
    "quickstart_rho.rho60": 1,
    "rho_qwen_cpu.rho": 1,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_learns_as_on_the_cpu_and_hardly_waits(tmp_path, recipe):
    ways = [on(recipe, *SIX, *RECIPES[recipe]) for on in (on_cpu, on_device)]
    python(tmp_path, *joined(ways))
    here, there = records(tmp_path / "cpu"), records(tmp_path / "device")
    assert here.keys() == there.keys()
    for run, numbers in here.items():
        for key in ("loss", "eval/nll"):
            within = 5e-3 if run in WITH_HALF else 1e-5
            assert math.isclose(there[run][key], numbers[key], rel_tol=within), (run, key)
    found = report(tmp_path)
    assert found.keys() == here.keys()
    for run, counted in found.items():
        assert counted.steps == 3, run  # of six: a stage may have a number of its own
        assert counted.waits_per_step <= WAITS.get(run, 0), (run, counted.waits)


def test_every_recipe_for_cpus_is_here():
    from fake_cuda.scenario import ROOT

    cpu = (ROOT / "recipes" / "cpu").glob("*.toml")
    # The least rounding changes what a student writes: these are no twins of a CPU's run.
    shipped = {f"cpu/{path.stem}" for path in cpu if "rollout" not in path.read_text()}
    # cpu/cross_tokenizer has a stage that writes, which is left out above.
    assert shipped | {"quickstart", "quickstart_rho", "cpu/cross_tokenizer"} == RECIPES.keys()
