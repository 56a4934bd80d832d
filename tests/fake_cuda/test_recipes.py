"""Every recipe that is shipped for CPUs, six steps on the fake device and on the CPU."""

import math

import pytest

from fake_cuda.scenario import joined, on_cpu, on_device, python, records, report, sets

pytestmark = pytest.mark.slow

SIX = sets(
    train__steps=6,
    train__precision="fp32",
    train__eval_rows=8,
    train__eval_first=False,
    train__log_every=100,
    train__eval_every=100,
    train__save_every=100,
)


def rouge(stage):
    """Few and short answers, measured."""
    few = {"rows": 2, "max_new_tokens": 8}
    return sets(**{f"stage__{stage}__eval__2__{key}": value for key, value in few.items()})


FEW_FACTS = sets(eval__1__samples=2, eval__1__max_new_tokens=8)

RECIPES = {
    "quickstart": sets(stage__teacher__train__steps=6) + FEW_FACTS,
    "quickstart_rho": sets(stage__reference__train__steps=6),
    "cpu/babyllama": sets(
        stage__llama__train__steps=6,
        stage__student__train__steps=6,
        stage__ce__train__steps=6,
        # CUDA draws dropout in another order.
        stage__gpt2__student__config__resid_pdrop=0,
        stage__gpt2__student__config__embd_pdrop=0,
        stage__gpt2__student__config__attn_pdrop=0,
        stage__llama__student__config__attention_dropout=0,
    ),
    "cpu/cross_tokenizer": sets(
        stage__teacher__train__steps=6,
        stage__alm__use="none",
        stage__seqkd__use="none",
    ),
    "cpu/hidden_qwen": sets(stage__base__train__steps=6, stage__teacher__train__steps=6),
    "cpu/llama3_babylm": sets(
        stage__teacher__train__steps=6,
        stage__student__train__steps=6,
        stage__student__train__eval_rows=8,
    ),
    "cpu/prune_and_distil": sets(stage__teacher__train__steps=6) + FEW_FACTS,
    "cpu/mix_domains": sets(stage__tasks__train__steps=6, stage__stories__train__steps=6),
    "cpu/qwen_kl_sft": sets(stage__base__train__steps=6, stage__teacher__train__steps=6)
    + [each for stage in ("ce", "student", "only_kl", "finetune_first") for each in rouge(stage)],
    "cpu/rho_qwen": [],
    "cpu/tinystories_llama": sets(
        eval__1__max_new_tokens=8, eval__2__samples=2, eval__2__max_new_tokens=8
    ),
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
    "quickstart_rho.rho60": 1,  # each step fills its cache, which is on the disk
    "rho_qwen_cpu.rho": 1,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_learns_as_on_the_cpu_and_hardly_waits(tmp_path, recipe):
    options = SIX + RECIPES[recipe]
    python(tmp_path, *joined([on_cpu(recipe, *options), on_device(recipe, *options)]))
    here, there = records(tmp_path / "cpu"), records(tmp_path / "device")
    assert here.keys() == there.keys()
    for run, numbers in here.items():
        for key in ("loss", "eval/nll"):
            within = 2e-3 if run in WITH_HALF else 1e-5
            assert math.isclose(there[run][key], numbers[key], rel_tol=within), (run, key)
    for run, counted in report(tmp_path).items():
        assert counted.waits_per_step <= WAITS.get(run, 0), (run, counted.waits)


def test_every_recipe_for_cpus_is_here():
    from fake_cuda.scenario import ROOT

    cpu = (ROOT / "recipes" / "cpu").glob("*.toml")
    # The least rounding changes what a student writes: these are no twins of a CPU's run.
    shipped = {f"cpu/{path.stem}" for path in cpu if "rollout" not in path.read_text()}
    # cpu/cross_tokenizer has a stage that writes, which is left out above.
    assert shipped | {"quickstart", "quickstart_rho", "cpu/cross_tokenizer"} == RECIPES.keys()
