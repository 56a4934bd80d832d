"""The command typed in a fork of this process, with files and recipes that take a second.

Only the command line and files are used: any version of kdcore runs it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from whole_runs import recipe_text  # noqa: E402 - in a folder of the tests

SECONDS = 60  # of a command that does not end
WORDS = "the cat sat on the mat and then the dog ran far away from it all day long"

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content or '' }}{{ m.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass
class Done:
    """What a command did. `code` is negative where a signal ended it."""

    code: int
    out: str
    said: str


def kdcore(*arguments: str, before: Callable[[], object] = lambda: None) -> Done:
    """The command in a fork of this process; `before` runs there first."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = _child(arguments, before)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    out, said = (Path(name).read_text(errors="replace") for name in ("out.txt", "said.txt"))
    return Done(os.waitstatus_to_exitcode(status), out, said)


def _child(arguments: tuple[str, ...], before: Callable[[], object]) -> int:
    import runpy

    import datasets

    for number, name in ((1, "out.txt"), (2, "said.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    datasets.config.HF_DATASETS_CACHE = Path("datasets").absolute()
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(SECONDS)
    sys.argv = ["kdcore", *arguments]
    before()
    try:
        runpy.run_module("kdcore", run_name="__main__", alter_sys=True)
    except SystemExit as out:
        return int(out.code or 0)
    finally:
        with open(os.devnull, "w") as nowhere:
            (sys.stdout or nowhere).flush()
    return 0


def recipe(changes: Mapping[str, Any] | None = None, more: str = "", name: str = "r.toml") -> str:
    """Write a recipe that takes a second; its name."""
    Path(name).write_text(recipe_text(dict(changes or {}), more))
    return name


def text_recipe(path: str, changes: Mapping[str, Any] | None = None, more: str = "") -> str:
    """The same about a file."""
    of_file = {"data.stories": None, "data.use": "text", "data.path": path}
    held = {"data.validation": None, "data.validation_share": 0.2}
    return recipe({**of_file, **held, **(changes or {})}, more)


def metrics(run: str = "runs/*") -> list[dict[str, Any]]:
    """The lines of the run that was made last."""
    paths = sorted(Path().glob(f"{run}/metrics.jsonl"), key=os.path.getmtime)
    return [json.loads(line) for line in paths[-1].read_text().splitlines()] if paths else []


def values(key: str, run: str = "runs/*") -> list[float]:
    """What a run wrote under a key."""
    return [line[key] for line in metrics(run) if line.get(key) is not None]


def records(path: str, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines; their file."""
    Path(path).write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def model() -> str:
    """A random model with a byte-level tokenizer, in a folder. Made in a fork: it has threads."""
    child = os.fork()
    if child == 0:
        try:
            _save_model("model")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return "model"


def _save_model(name: str) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = ["<eos>", "<bos>", *letters]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(ids)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", bos_token="<bos>"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = AutoConfig.for_model("llama", num_attention_heads=2, vocab_size=len(ids), **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(name)
    tokenizer.save_pretrained(name)


OF_MODEL = {"tokenizer.use": "hf", "tokenizer.vocab_size": None, "tokenizer.model": "model"}


def sft(rows: list[dict[str, Any]], template: str = TEMPLATE, more: str = "") -> Done:
    records("c.jsonl", rows)
    options = {"data.stories": None, "data.use": "sft", "data.path": "c.jsonl"}
    held = {"data.validation": None, "data.validation_share": 0.2, "data.template": template}
    recipe({**options, **held, "data.block": 128, "train.eval_every": 4}, more)
    return kdcore("run", "r.toml", "-q")


def dialogue(answer: str, **more: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": answer, **more}
    return {"messages": [{"role": "user", "content": WORDS[:20]}, said]}


class Refusing:
    """An audit hook: the file system refuses to open what has a name, so many times."""

    def __init__(self, name: str, error: int, times: int) -> None:
        self.name, self.error, self.times = name, error, times

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        """What Python tells an auditor."""
        if event == "open" and self.times and self.name in str(arguments[0]):
            self.times -= 1
            raise OSError(self.error, os.strerror(self.error), str(arguments[0]))


def refusing(name: str, error: int, times: int = 1) -> Callable[[], object]:
    return lambda: sys.addaudithook(Refusing(name, error, times))
