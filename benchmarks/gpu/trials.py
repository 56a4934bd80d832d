"""Parts of a GPU day other than speed: tests, options that need a library, smaller cards, running
out of memory, learning in half precision, being killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import founding
import standins
import torch
from engine import measure, runs_of
from limited import limit
from process import forked, started
from world import Skipped, World, target

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SHORT = 90.0  # seconds that a dozen steps may take, libraries included
FEW = 3  # steps of a window where pace is not what is asked


def gpu_tests(world: World) -> dict[str, Any]:
    """pytest of what is marked gpu."""
    _need("pytest", "hypothesis")
    files = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *map(str, files)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = done.stdout.decode()
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", said)}
    bad = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if done.returncode and not failed:
        raise RuntimeError(said[-2000:])
    good = target(world, "tests marked gpu that pass", counts.get("passed", 0), least=1)
    return {**counts, "said": bad[:40], "targets": [good, target(world, "and fail", failed, 0)]}


OPTIONS: Mapping[str, tuple[str, Sequence[str]]] = {
    "as it is": ("torch", []),
    "a teacher in 4 bits": ("bitsandbytes", ['stage.student.teacher.quantise="4bit"']),
    "a teacher in 8 bits": ("bitsandbytes", ['stage.student.teacher.quantise="8bit"']),
    "an offloaded teacher": ("accelerate", ["stage.student.teacher.offload=true"]),
    "paged_adamw_8bit": ("bitsandbytes", ['stage.student.train.optimizer="paged_adamw_8bit"']),
    "LoRA": ("peft", ['stage.student.student.patch=[{use="lora"}]']),
    "Liger's kernels": ("liger_kernel", ['stage.student.student.patch=[{use="liger"}]']),
    "checkpointing": ("torch", ["stage.student.train.checkpointing=true"]),
    "answers of the student": (
        "torch",
        ['stage.student.rollout={use="student", share=0.5, max_new_tokens=NEW}'],
    ),
    "answers of the teacher": (
        "torch",
        ['stage.student.rollout={use="teacher", max_new_tokens=NEW}'],
    ),
    "hidden states": (
        "torch",
        [
            'stage.student.loss=[{use="ce", weight=0.5}, {use="kl", weight=0.5}, '
            '{use="hidden-cosine", layers=[[1, 1], [-1, -1]], projection="linear"}]'
        ],
    ),
    "an aligned teacher": (
        "torch",
        [
            'stage.student.teacher={use="aligned", template="none", '
            'teacher={use="hf", model="OTHER"}}'
        ],
    ),
}
ANYWHERE = ("as it is", "LoRA", "checkpointing", "answers of the student")
ANYWHERE += ("answers of the teacher", "hidden states", "an aligned teacher")  # without a GPU too


def option(world: World, name: str) -> dict[str, Any]:
    """qwen_kl_sft's student of a teacher of 1.5B, with one option set."""
    library, sets = OPTIONS[name]
    if world.device.type != "cuda" and name not in ANYWHERE:
        raise Skipped("it needs a GPU")
    _need(library)
    return within_plan(world, measure(world, _STUDENT, _of(world, _STUDENT, sets), window=FEW))


_STUDENT = "qwen_kl_sft.student"
_NEW = {False: "128", True: "4"}  # tokens of an answer; in a rehearsal


def _of(world: World, stage: str, sets: Sequence[str]) -> list[str]:
    """What is set of a stage; qwen_kl_sft's student has a teacher of 1.5B."""
    found = list(sets)
    if stage == _STUDENT and not any("stage.student.teacher=" in one for one in sets):
        teacher = standins.model(world, "qwen-1.5b")
        found.insert(0, f'stage.student.teacher.model="{teacher}"')
    other = str(standins.model(world, "llama")) if any("OTHER" in one for one in sets) else ""
    return [one.replace("NEW", _NEW[world.rehearse]).replace("OTHER", other) for one in found]


BF16, GRAPHS, TRUNK = "bf16_weights=true", "cuda_graphs=true", "compile_trunk=true"
DECISIONS: Mapping[str, tuple[str, Sequence[str]]] = {
    "bf16 weights, rho_qwen": ("rho_qwen", [BF16]),
    "bf16 weights, qwen_kl_sft.student": (_STUDENT, [BF16]),
    "CUDA graphs, rho_qwen": ("rho_qwen", [GRAPHS]),
    "CUDA graphs, babyllama.student": ("babyllama.student", [GRAPHS]),
    "both, rho_qwen": ("rho_qwen", [BF16, GRAPHS]),
    "a compiled trunk, qwen_kl_sft.student": (_STUDENT, [TRUNK]),
}
GAIN, SAME = 1.05, 0.005  # from which a default may change: faster, and the loss apart at most


def decision(world: World, name: str) -> dict[str, Any]:
    """A stage without and with an option that is off by default: what it gains, and the losses."""
    stage, options = DECISIONS[name]
    if world.device.type != "cuda" and options != [BF16]:
        raise Skipped("it needs a GPU")
    if TRUNK in options:
        _need("triton")
    sets = [f"{founding.train(stage)}.{one}" for one in options]
    precision = [f'{founding.train(stage)}.precision="bf16"']  # on a CPU "auto" is float32
    before, after = (
        measure(world, stage, _of(world, stage, [*precision, *some]), window=FEW)
        for some in ((), sets)
    )
    gain, apart = before["ms"] / after["ms"], abs(after["loss"] / before["loss"] - 1)
    targets = [
        target(world, "steps in the same time, with it", gain, least=GAIN),
        target(world, "the loss, apart from that without it", apart, SAME, always=True),
    ]
    kept = ("ms", "loss", "kernels", "rows at once")
    compared = {
        f"{key}, {how}": one.get(key)
        for key in kept
        for how, one in (("without", before), ("with", after))
    }
    memory = within_plan(world, after)["targets"]
    return {**compared, "gain": gain, "targets": [*targets, *memory]}


_SMALLER = "qwen-3b"
CARDS: Mapping[str, tuple[float, str, Sequence[str]]] = {
    "8 GB, tinystories_llama": (8, "tinystories_llama", []),
    "8 GB, babyllama.student": (8, "babyllama.student", []),
    "16 GB, rho_qwen": (16, "rho_qwen", []),
    "16 GB, babyllama.gpt2, checkpointing": (
        *(16, "babyllama.gpt2"),
        ["stage.gpt2.train.checkpointing=true"],
    ),
    "24 GB, rho_qwen": (24, "rho_qwen", []),
    "24 GB, babyllama.gpt2": (24, "babyllama.gpt2", []),
    "24 GB, qwen_kl_sft.student of 3B": (
        *(24, "qwen_kl_sft.student"),
        ['stage.student.teacher.model="{}"'],
    ),
    "24 GB, qwen_kl_sft.teacher, 3B": (
        *(24, "qwen_kl_sft.teacher"),
        ['stage.teacher.student.model="{}"'],
    ),
    "40 GB, qwen_kl_sft.student of 7B": (40, "qwen_kl_sft.student", []),
}


def smaller_card(world: World, name: str) -> dict[str, Any]:
    """A recipe as the documentation says that such a card runs it."""
    gigabytes, stage, typed = CARDS[name]
    standins.all_of(world, founding.stage_of(world, stage))  # with all of the memory
    sets = [one.format(standins.model(world, _SMALLER)) if "{}" in one else one for one in typed]
    try:
        limit(gigabytes)
    except SystemExit as smaller:
        raise Skipped(str(smaller)) from None
    found = measure(world, stage, sets, window=FEW)
    taken = found["memory"]["taken"] * 2**30 / 1e9
    fits = target(world, f"{name}: GB taken", taken, gigabytes)
    return {**found, "targets": [fits, *within_plan(world, found)["targets"]]}


def out_of_memory(world: World) -> dict[str, Any]:
    """Rows at once that do not fit are halved; a model that does not fit is said in a sentence."""
    stage, many, few = "babyllama.llama", 128, 16
    too_little = "" if world.device.type != "cuda" else _said_by_too_small_a_card(world)
    limit(12)
    found = {}
    for rows in (many, few):
        sets = [f"{founding.train(stage)}.micro_batch={rows}"]
        found[rows] = measure(world, stage, sets, window=FEW)
    losses = [found[rows]["loss"] for rows in (many, few)]
    halved, apart = found[many]["rows at once"], abs(losses[0] / losses[1] - 1)
    targets = [
        target(world, f"rows at once, where {many} are too many", halved, many // 2),
        target(world, "the loss of halved rows, apart from that of few rows", apart, 0.01),
    ]
    if too_little:
        good = too_little.startswith("kdcore: ") and "memory" in too_little
        targets.append(target(world, "a sentence where nothing fits (1: yes)", int(good), least=1))
    return {"rows at once": halved, "losses": losses, "said": too_little, "targets": targets}


def _said_by_too_small_a_card(world: World) -> str:
    """The last line of what a run says with 4 GB, where 11 are needed."""
    sets = founding.sets_of(world, "babyllama.gpt2")
    words = [word for one in sets for word in ("--set", one)]
    words += ["--stage", "gpt2", "--out", str(runs_of(world) / "too-small")]
    command = [sys.executable, str(HERE / "limited.py"), "4", "run", "babyllama", *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=SHORT)
    return done.stderr.strip().rpartition("\n")[2] or f"it ended with {done.returncode}"


# As the head of recipes/quickstart.toml has them for seeds 0, 1 and 2 on a CPU, and a little more.
LEARNED = {"teacher": (0.18, 0.20), "ce": (1.04, 1.22), "kd": (0.46, 0.58)}


def learning(world: World, precision: str) -> dict[str, Any]:
    """The quickstart's validation losses in one precision."""
    import kdcore

    if world.device.type != "cuda" and precision == "fp16":
        raise Skipped("half precision with a loss scaler needs a GPU")
    sets = [f'train.precision="{precision}"', "eval="]
    if world.rehearse:
        sets += [f"stage.{stage}.train.steps=3" for stage in LEARNED]
        sets += ["train.eval_rows=8", "data.stories=200", "train.batch=4"]
    with TemporaryDirectory(dir=runs_of(world)) as folder:
        done = kdcore.run("quickstart", sets=sets, out=folder)
        found = {
            each.name.rpartition("-")[0].partition(".")[2]: kdcore.load(each).scores["nll"]
            for each in done.stages
        }
    targets = [
        target(world, f"{precision}: validation loss of {stage}", found[stage], most, least=least)
        for stage, (least, most) in LEARNED.items()
    ]
    return {"validation loss": found, "targets": targets}


def kill_and_resume(world: World) -> dict[str, Any]:
    """The quickstart's teacher, killed after a checkpoint and started again, against two others."""
    with TemporaryDirectory(dir=runs_of(world)) as name:
        folder = Path(name)
        first, second = (_weights(world, folder / each) for each in ("first", "second"))
        code = _short_run(world, folder / "killed", kill_at=7)
        if code != -signal.SIGKILL:
            raise RuntimeError(f"a run that should have been killed ended with {code}")
        resumed = _weights(world, folder / "killed")
    alike, apart = _apart(first, second), _apart(first, resumed)
    what = "largest weight apart, killed and resumed (at most twice that of two runs alike)"
    return {
        "two runs alike, apart": alike,
        "killed and resumed, apart": apart,
        "to the bit": apart == 0,
        "targets": [target(world, what, apart, 2 * alike, always=True)],
    }


def _weights(world: World, out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if code := _short_run(world, out):
        raise RuntimeError(f"a short run ended with {code}")
    (final,) = out.glob("*/final/model.safetensors")
    return load_file(final)


def _short_run(world: World, out: Path, kill_at: int = 0) -> int | None:
    keys = {"train.steps": 12, "train.save_every": 4, "train.eval_first": "false"}
    sets = {"train.eval_every": founding.NEVER, "train.eval_rows": 8, "eval": ""} | {
        f"stage.teacher.{key}": value for key, value in keys.items()
    }
    words = ["run", "quickstart", "--stage", "teacher", "-q", "--out", str(out)]
    words += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    words += ["-p", str(HERE / "killer.py")] if kill_at else []
    kill, log = {"KDCORE_KILL_AT": str(kill_at)}, out.with_suffix(".log")
    if not world.rehearse:
        return started(["-m", "kdcore", *words], {**os.environ, **kill}, log, SHORT)
    return forked(lambda: _command(words, kill), log, SHORT)


def _command(words: Sequence[str], environment: Mapping[str, str]) -> None:
    from kdcore.cli.main import main

    os.environ |= environment
    sys.argv = ["kdcore", *words]
    main()


def _apart(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return max(float((some[key] - others[key]).abs().max()) for key in some)


def _need(*libraries: str) -> None:
    for library in libraries:
        if find_spec(library) is None:
            raise Skipped(f"{library} is not installed")


def within_plan(world: World, found: dict[str, Any]) -> dict[str, Any]:
    """What was measured, and whether `kdcore plan` said its memory to a tenth."""
    ratio = found["memory"]["taken"] / found["planned"]["peak"]
    label = "memory taken, of what kdcore plan says"
    return {**found, "targets": [target(world, label, ratio, 1.10, least=0.90)]}
