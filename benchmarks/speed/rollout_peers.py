"""On-policy steps of kdcore and of TRL's GKDTrainer and DistillationTrainer, on a CPU.

    python -m venv peers
    peers/bin/pip install -c constraints.txt torch
    peers/bin/pip install -c constraints.txt .
    peers/bin/pip install --no-deps -r benchmarks/speed/peers.txt
    peers/bin/python benchmarks/speed/rollout_peers.py

Student, teacher and prompts are those of quickstart_onpolicy: the distilled student continues the
first 16 tokens of the 60 stories, 16 prompts a step, at most 150 new tokens, the generalised
Jensen-Shannon divergence with beta 0.5, AdamW, float32, one thread. CPU seconds a step, writing
included. Before that all 60 prompts are answered once by TRL, and the loss and gradient of both on
these answers are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Completion, Prompt, Record, Rollout, Run, component, hookimpl

RECIPE, STAGE, BATCH, PROMPT, NEW, LR = "quickstart_onpolicy", "onpolicy", 16, 16, 150, 2e-3
SETS = ["loss.reverse-kl.use=jsd", "train.eval_first=false", "train.eval_rows=1"]


@component
class GivenAnswers(Rollout):
    """Answers from a file, by prompt."""

    name = "given-answers"
    path: str = Field(description="JSON: pairs of a prompt's ids and its answer's")

    def generate(self, run: Run, prompts: Sequence[Prompt]) -> Sequence[Completion]:
        known = {
            tuple(prompt): answer for prompt, answer in json.loads(Path(self.path).read_text())
        }
        answers = [tuple(known[tuple(prompt.ids)]) for prompt in prompts]
        return [Completion(ids, ids[-1] in run.sampling(self).ends) for ids in answers]


_SECONDS: list[float] = []


@hookimpl
def kdcore_rollouts() -> Sequence[type[Rollout]]:
    return [GivenAnswers]


@hookimpl
def kdcore_step_start(run: Run, step: int) -> None:
    _SECONDS.append(time.process_time())


@hookimpl
def kdcore_log(run: Run, record: Record) -> None:
    if record.step == run.steps:
        _SECONDS.append(time.process_time())
        (run.folder / "seconds.json").write_text(json.dumps(_SECONDS))


@hookimpl
def kdcore_written(run: Run, step: int, completions: Sequence[Completion]) -> None:
    prompts = [tuple(row["input_ids"][:PROMPT].tolist()) for row in run.rows("train")]
    (run.folder / "prompts.json").write_text(json.dumps([list(map(int, ids)) for ids in prompts]))


def main() -> None:
    """The comparison of losses, then a line for each trainer."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--steps", type=int, default=10, help="0: the losses only")
    asked.add_argument("--runs", type=Path, help="where the recipe's first stages are, or will be")
    options = asked.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        runs = options.runs or Path(name)
        kdcore(runs, Path(name) / "first", ["train.steps=1", 'data.rows="one"', "train.batch=60"])
        first = folder_of(Path(name) / "first")
        models = [next(runs.glob(f"*.{stage}-*")) / "final" for stage in ("kd", "teacher")]
        prompts = json.loads((first / "prompts.json").read_text())
        compare(models, prompts, Path(name), runs)
        ways: dict[str, Callable[[], list[float]]] = {
            "kdcore": lambda: ours(runs, Path(name), options.steps),
            "TRL GKDTrainer": lambda: gkd(models, prompts, options.steps, Path(name)),
            "TRL DistillationTrainer": lambda: distillation(
                models, prompts, options.steps, Path(name)
            ),
        }
        for way, steps in ways.items() if options.steps else ():
            times = sorted(steps())
            print(f"{way:24} {times[len(times) // 2]:6.2f} CPU seconds a step, median", flush=True)


def kdcore(runs: Path, out: Path, sets: Sequence[str]) -> None:
    """The stage in a process and a folder of its own; what it needs is in `runs`."""
    for each in ("teacher", "kd"):
        command(runs, ["--stage", each])
    out.mkdir()
    for each in ("teacher", "kd"):
        (found,) = runs.glob(f"*.{each}-*")
        (out / found.name).symlink_to(found.resolve())
    own = [f"stage.{STAGE}.{each}" for each in (*SETS, *sets)]
    command(out, ["--stage", STAGE, *(word for each in own for word in ("--set", each))])


def command(out: Path, words: Sequence[str]) -> None:
    """`kdcore run` on one thread."""
    base = [sys.executable, "-m", "kdcore", "run", RECIPE, "-q", "-p", "no:panel", "-p", __file__]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [*base, *words, "--out", str(out)], env=one_thread, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise SystemExit(f"kdcore run {' '.join(words)} failed")


def folder_of(out: Path) -> Path:
    """Of the stage that was run there."""
    (found,) = out.glob(f"*.{STAGE}-*")
    return found


def loaded(models: Sequence[Path]) -> tuple[Any, Any, Any]:
    """Student, teacher and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student, teacher = (AutoModelForCausalLM.from_pretrained(each) for each in models)
    return student, teacher, AutoTokenizer.from_pretrained(models[0])


def compare(models: Sequence[Path], prompts: list[list[int]], folder: Path, runs: Path) -> None:
    """The loss and the gradient on TRL's answers."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher, tokenizer = loaded(models)
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    with torch.no_grad():
        ids, mask, labels = GKDTrainer.generate_on_policy_outputs(
            student.eval(), collated([{"ids": each} for each in prompts]), generation(end)
        )
    answers = [
        row[PROMPT:][seen[PROMPT:] > 0].tolist() for row, seen in zip(ids, mask, strict=True)
    ]
    (folder / "answers.json").write_text(json.dumps(list(zip(prompts, answers, strict=True))))
    given = (ids, mask, labels)
    found = {
        "kdcore": of_kdcore(folder, runs, student),
        "TRL": of_trl(student, teacher, given),
        "TRL in float64": of_trl(student.double(), teacher.double(), given),
    }
    exact = found["TRL in float64"][1]
    size = torch.cat([each.flatten() for each in exact.values()]).norm()
    print(f"{sum(map(len, answers))} tokens that TRL wrote; distance to the gradient in float64:")
    for who, (loss, gradients) in found.items():
        apart = torch.cat([(gradients[name] - exact[name]).flatten() for name in exact]).norm()
        print(f"{who:16} loss {loss:.8f}  gradient {float(apart / size):.1e}", flush=True)


def of_trl(
    student: Any, teacher: Any, given: tuple[Tensor, Tensor, Tensor]
) -> tuple[float, dict[str, Tensor]]:
    """The loss of GKDTrainer, and its gradient."""
    from trl.experimental.gkd import GKDTrainer

    ids, mask, labels = given
    student.zero_grad()
    with torch.no_grad():
        other = teacher.eval()(input_ids=ids, attention_mask=mask).logits
    own = student(input_ids=ids, attention_mask=mask).logits
    loss = GKDTrainer.generalized_jsd_loss(own[:, :-1], other[:, :-1], labels[:, 1:], beta=0.5)
    loss.backward()
    return float(loss), {name: each.grad for name, each in student.named_parameters()}


def of_kdcore(folder: Path, runs: Path, student: Any) -> tuple[float, dict[str, Tensor]]:
    """Its loss in the first step, and from what that changes its gradient.

    AdamW's first step is lr x g / (|g| + eps): with eps as large as here, lr / eps x g.
    """
    from transformers import AutoModelForCausalLM

    rate, eps = 1e10, 1e6
    writer = f"{{use='given-answers', path='{folder}/answers.json', max_new_tokens={NEW}}}"
    sets = [f"rollout={writer}", "train.steps=1", 'data.rows="one"', "train.batch=60"]
    sets += [f"train.lr={rate}", f"train.eps={eps}", "train.clip=0.0", "train.weight_decay=0.0"]
    sets += ["train.schedule=constant", "train.min_lr=0.0", f"rollout.prompt_tokens={PROMPT}"]
    kdcore(runs, folder / "same", sets)
    done = folder_of(folder / "same")
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    (loss,) = [line["loss/jsd"] for line in lines if "loss/jsd" in line]
    after = AutoModelForCausalLM.from_pretrained(done / "final").state_dict()
    before = dict(student.named_parameters())
    return loss, {name: (before[name].detach() - after[name]) * (eps / rate) for name in before}


def ours(runs: Path, folder: Path, steps: int) -> list[float]:
    """CPU seconds of each step."""
    kdcore(runs, folder / "ours", [f"train.steps={steps}", 'data.rows="one"'])
    times = json.loads((folder_of(folder / "ours") / "seconds.json").read_text())
    return differences(times)


def differences(times: Sequence[float]) -> list[float]:
    """Of each and the next."""
    return [after - before for before, after in pairwise(times)]


def generation(end: int) -> Any:
    """As GKDTrainer makes it."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=NEW, do_sample=True, top_k=0, eos_token_id=end, pad_token_id=end
    )


def collated(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Prompts of equal length, in the form that GKDTrainer asks for."""
    ids = torch.tensor([row["ids"] for row in rows])
    seen = torch.ones_like(ids)
    return {
        "prompts": ids,
        "prompt_attention_mask": seen,
        "input_ids": ids,
        "attention_mask": seen,
        "labels": ids,
    }


def clock() -> tuple[Any, list[float]]:
    """A callback of transformers' trainer, and what it notes."""
    from transformers import TrainerCallback

    noted: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            noted.append(time.process_time())

    return Clock(), noted


def arguments(steps: int, folder: Path) -> dict[str, Any]:
    """Those that both of TRL's trainers have."""
    return {
        "output_dir": str(folder / "trl"),
        "max_steps": steps + 1,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "beta": 0.5,
        "temperature": 1.0,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }


def gkd(models: Sequence[Path], prompts: list[list[int]], steps: int, folder: Path) -> list[float]:
    """CPU seconds of each step but the first."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher, tokenizer = loaded(models)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    callback, noted = clock()
    GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(lmbda=1.0, max_new_tokens=NEW, **arguments(steps, folder)),
        data_collator=collated,
        train_dataset=Dataset.from_list([{"ids": each} for each in prompts]),
        processing_class=tokenizer,
        callbacks=[callback],
    ).train()
    return differences(noted)


def distillation(
    models: Sequence[Path], prompts: list[list[int]], steps: int, folder: Path
) -> list[float]:
    """The same of the newer trainer, which takes prompts as text."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    student, teacher, tokenizer = loaded(models)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    callback, noted = clock()
    DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(max_completion_length=NEW, **arguments(steps, folder)),
        train_dataset=Dataset.from_list([{"prompt": tokenizer.decode(each)} for each in prompts]),
        processing_class=tokenizer,
        callbacks=[callback],
    ).train()
    return differences(noted)


if __name__ == "__main__":
    main()
