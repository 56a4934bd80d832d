"""The same training with kdcore and with TRL's GKDTrainer, on a CPU: losses, time and memory.

    python -m venv peers
    peers/bin/pip install -c constraints.txt torch
    peers/bin/pip install -c constraints.txt .
    peers/bin/pip install --no-deps -r benchmarks/speed/peers.txt
    peers/bin/python benchmarks/speed/training_peers.py

Twenty steps of four questions with answers, 80 to 192 tokens each; the answers are trained on. A
llama of 6.7M parameters learns from one of 15.4M, 49,152 ids, both with random weights: the
generalised Jensen-Shannon divergence with beta 0.5, AdamW at 1e-3, clipped at 1, float32, one
thread. Rows and their order are the same. Each trainer runs in a process of its own, in turn, three
times; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kdcore import Data, Record, Row, Run, component, hookimpl

STEPS, BATCH, VOCABULARY, LR, ROUNDS = 20, 4, 49_152, 1e-3, 3
RECIPE = """
name = "same"
[student]
model = "FOLDER/student"
[tokenizer]
use = "hf"
model = "FOLDER/student"
[teacher]
use = "hf"
model = "FOLDER/teacher"
[data]
use = "given-rows"
path = "FOLDER/rows.json"
block = 192
[[loss]]
use = "jsd"
[train]
steps = STEPS
batch = BATCH
lr = 1e-3
schedule = "constant"
warmup = 0
weight_decay = 0.0
clip = 1.0
precision = "fp32"
log_every = 1
eval_first = false
eval_rows = 4
"""


@component
class GivenRows(Data):
    """Rows from a file; each epoch has those of one step."""

    name = "given-rows"
    fresh_each_epoch = True
    path: str

    def make_rows(self, split: str, tokenizer: object, *, seed: int, epoch: int) -> Sequence[Row]:
        """Four rows with labels on their answers."""
        rows = json.loads(Path(self.path).read_text())
        first = BATCH * epoch if split == "train" else 0
        return [
            {"input_ids": row["ids"], "labels": labels_of(row)}
            for row in rows[first : first + BATCH]
        ]


_SECONDS: list[float] = []


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    return [GivenRows]


@hookimpl
def kdcore_step_start(run: Run, step: int) -> None:
    _SECONDS.append(time.process_time())


@hookimpl
def kdcore_log(run: Run, record: Record) -> None:
    if record.step == run.steps and len(_SECONDS) == run.steps:
        _SECONDS.append(time.process_time())
        (run.folder / "seconds.json").write_text(json.dumps(_SECONDS))


def labels_of(row: dict[str, Any]) -> list[int]:
    """The answer's ids, -100 elsewhere."""
    asked: int = row["question"]
    return [-100] * asked + row["ids"][asked:]


def main() -> None:
    """A line for each trainer, then the largest difference of their losses."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--trainer", choices=["kdcore", "trl"], help=argparse.SUPPRESS)
    asked.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = asked.parse_args()
    if options.trainer:
        torch.set_num_threads(1)
        train = with_kdcore if options.trainer == "kdcore" else with_trl
        print(json.dumps(train(options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        make_world(Path(name))
        found: dict[str, list[dict[str, Any]]] = {"kdcore": [], "trl": []}
        for _ in range(ROUNDS):
            for trainer, results in found.items():
                results.append(in_own_process(trainer, Path(name)))
    for trainer, results in found.items():
        seconds = median(median(one["seconds"]) for one in results)
        peak = median(one["peak"] for one in results)
        print(f"{trainer:8} {seconds:6.2f} CPU seconds a step, peak memory {peak:,.0f} MB")
    both = zip(found["kdcore"][0]["losses"], found["trl"][0]["losses"], strict=True)
    apart = max(abs(ours - theirs) for ours, theirs in both)
    print(f"largest difference of {STEPS} losses: {apart:.1e}")


def in_own_process(trainer: str, folder: Path) -> dict[str, Any]:
    """Losses, CPU seconds of each step but the first, and peak resident memory in MB."""
    command = [sys.executable, __file__, "--trainer", trainer, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return found


def make_world(folder: Path) -> None:
    """Student, teacher, tokenizer, rows and the recipe."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{n}": n for n in range(VOCABULARY - 1)} | {"<end>": VOCABULARY - 1}
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<end>", pad_token="<end>", unk_token="w0"
    )
    for seed, (name, width) in enumerate({"student": 128, "teacher": 256}.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=2 if name == "student" else 3,
            num_attention_heads=4,
            tie_word_embeddings=True,
            eos_token_id=VOCABULARY - 1,
            initializer_range=0.1,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = random.Random(0)
    (folder / "rows.json").write_text(json.dumps([a_row(draw) for _ in range(STEPS * BATCH)]))
    text = RECIPE.replace("FOLDER", str(folder)).replace("STEPS", str(STEPS))
    (folder / "same.toml").write_text(text.replace("BATCH", str(BATCH)))


def a_row(draw: random.Random) -> dict[str, Any]:
    """A question of 20 to 60 tokens with an answer of 60 to 132."""
    question, answer = draw.randint(20, 60), draw.randint(60, 132)
    ids = [int(VOCABULARY * draw.random() ** 3) for _ in range(question + answer - 1)]
    return {
        "ids": [min(each, VOCABULARY - 2) for each in ids] + [VOCABULARY - 1],
        "question": question,
    }


def result(losses: Sequence[float], times: Sequence[float]) -> dict[str, Any]:
    """What a trainer's process prints; the first step warms up."""
    seconds = [after - before for before, after in pairwise(times)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"losses": list(losses), "seconds": seconds[1:], "peak": peak}


def with_kdcore(folder: Path) -> dict[str, Any]:
    """The recipe, in this process."""
    import kdcore

    done = kdcore.run(folder / "same.toml", out=folder / f"runs-{os.getpid()}", plugins=[__file__])
    losses = [each["loss"] for each in done.metrics if each.get("loss") is not None]
    times = json.loads((done.folder / "seconds.json").read_text())
    return result(losses, times)


def with_trl(folder: Path) -> dict[str, Any]:
    """GKDTrainer on the rows of the file."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    losses: list[float] = []
    times: list[float] = []

    class Noting(GKDTrainer):  # type: ignore[misc]
        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            losses.append(float(loss.detach()))
            return loss

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            if not times:
                times.append(time.process_time())

        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.process_time())

    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder / name) for name in ("student", "teacher")
    )
    settings: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "beta": 0.5,
        "lmbda": 0.0,
        "temperature": 1.0,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    rows = json.loads((folder / "rows.json").read_text())
    Noting(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(**settings),
        data_collator=collated,
        train_dataset=Dataset.from_list([{**row, "labels_of": labels_of(row)} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(folder / "student"),
        callbacks=[Clock()],
    ).train()
    return result(losses, times)


def collated(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows of unequal length, padded at the right; only the answers have labels."""
    longest = max(len(row["ids"]) for row in rows)

    def padded(values: Sequence[int], fill: int) -> list[int]:
        return [*values, *[fill] * (longest - len(values))]

    ids = torch.tensor([padded(row["ids"], VOCABULARY - 1) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([padded([1] * len(row["ids"]), 0) for row in rows]),
        "labels": torch.tensor([padded(labels_of(row), -100) for row in rows]),
        "prompts": ids,
        "prompt_attention_mask": torch.ones_like(ids),
    }


if __name__ == "__main__":
    main()
