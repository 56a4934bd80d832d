"""Fifty mistakes that people make, each typed for real.

    python benchmarks/robustness/mistakes.py --results     a table in results/

Each works as its author meant, or ends with 1 or 2 and at most six lines that say what, where and
what to type. Anything else is wrong: the exit code is 1. What needs the hub is tried without one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from forked import command, said
from kills import RESULTS, warm

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

RECIPE = """\
[tokenizer]
use = "bpe"
vocab_size = 300

[data]
use = "text"
path = "texts"
validation_share = 0.2
block = 32

[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2

[train]
steps = 2
batch = 2
lr = 1e-3

[[loss]]
use = "ce"
"""
OF_MODEL = RECIPE[RECIPE.index("[data]") :].replace(
    RECIPE[RECIPE.index("[student.config]") : RECIPE.index("[train]")],
    '[student]\nmodel = "model"\n\n',
)
SFT = RECIPE.replace('use = "text"', 'use = "sft"\ntemplate = "plain"').replace(
    "block = 32", "block = 256"
)
TEACHER = '\n[teacher]\nuse = "hf"\nmodel = "model"\n'
TAUGHT = OF_MODEL.replace('use = "ce"', 'use = "kl"') + TEACHER
MOST = 6  # lines


@dataclass(frozen=True)
class Mistake:
    """What is typed, with the recipe and the files that lie there."""

    name: str
    recipe: str = RECIPE
    arguments: tuple[str, ...] = ("run", "r.toml")
    says: str = ""  # what to type, in the message
    files: Mapping[str, str | bytes] | None = None
    lay: Callable[[Path], None] = lambda folder: None


def _sets(*sets: str) -> tuple[str, ...]:
    return ("run", "r.toml", *(word for each in sets for word in ("--set", each)))


def _trained(old: str, new: str, text: str = RECIPE) -> str:
    assert old in text, old
    return text.replace(old, new)


def _jsonl(*records: object) -> str:
    return "".join(json.dumps(each) + "\n" for each in records)


ASK = {"instruction": "What is it?", "output": "a fox"}
QA = [{"question": "What is it?", "answer": "a fox"}] * 9
GPT = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 9


def _taught_by(name: str) -> str:
    return TAUGHT.replace('use = "hf"\nmodel = "model"', f'use = "hf"\nmodel = "{name}"')


def _data(path: str, text: str = SFT) -> str:
    return text.replace('path = "texts"', f'path = "{path}"')


def _without(*names: str) -> Callable[[Path], None]:
    def lay(folder: Path) -> None:
        for path in (folder / "model").iterdir():
            if path.name.startswith(names):
                path.unlink()

    return lay


def _config(**changes: object) -> Callable[[Path], None]:
    def lay(folder: Path) -> None:
        path = folder / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return lay


def _two_runs(folder: Path) -> None:
    for name in ("r-aaaaaaaa", "r-bbbbbbbb"):
        (folder / "runs" / name).mkdir(parents=True)
        for file in ("recipe.toml", "resolved.toml"):
            (folder / "runs" / name / file).write_text('name = "r"\n' + RECIPE)


TWO = RECIPE + '\n[[loss]]\nuse = "kl"\n\n[teacher]\nuse = "hf"\nmodel = "model"\n'
PATHS = [
    Mistake("data file missing", _data("corpus.jsonl", RECIPE), says="--set data.path=PATH"),
    Mistake(
        "data folder empty",
        _data("empty", RECIPE),
        lay=lambda at: (at / "empty").mkdir(),
        says='path = "PATH"',
    ),
    Mistake("glob without a match", _data("texts/*.parquet", RECIPE), says="texts has a.txt"),
    Mistake("~/x", _data("~/gone.txt", RECIPE), says="--set data.path=PATH"),
    Mistake(
        "run from another folder",
        arguments=("run", "../elsewhere/r.toml"),
        says="kdcore new recipe",
    ),
    Mistake(
        "teacher folder without config.json",
        TAUGHT,
        lay=_without("config.json"),
        says="copy the model's own there",
    ),
    Mistake("a folder without a tokenizer", OF_MODEL, lay=_without("tokenizer"), says="own there"),
    Mistake("hub name with a typo", _taught_by("Qwen/Qwen9-0B"), says='model = "PATH"'),
    Mistake(
        "gated model, no network", _taught_by("meta-llama/Llama-3.1-8B"), says='model = "PATH"'
    ),
    Mistake(
        "no network",
        OF_MODEL.replace('model = "model"', 'model = "HuggingFaceTB/SmolLM2-135M"'),
        says="--set student.model=PATH",
    ),
]
TOML = [
    Mistake("[loss] for [[loss]]", _trained("[[loss]]", "[loss]"), says="write [[loss]]"),
    Mistake(
        'lr = "2e-5"', _trained("lr = 1e-3", 'lr = "2e-5"'), says="write it without quotes: 2e-5"
    ),
    Mistake("learing_rate", _trained("lr = 1e-3", "learing_rate = 1e-3"), says="write lr = 2e-5"),
    Mistake(
        "per_device_train_batch_size",
        _trained("batch = 2", "per_device_train_batch_size = 2"),
        says="write batch = 32",
    ),
    Mistake(
        "num_train_epochs", _trained("steps = 2", "num_train_epochs = 2"), says="write epochs = 3"
    ),
    Mistake("bf16 = true", _trained("batch = 2", "bf16 = true"), says='precision = "bf16"'),
    Mistake(
        "gradient_accumulation_steps",
        _trained("batch = 2", "gradient_accumulation_steps = 2"),
        says="leave it out",
    ),
    Mistake(
        "epochs and steps both",
        _trained("steps = 2", "steps = 2\nepochs = 1"),
        says="leave out steps or epochs",
    ),
    Mistake("none of them", _trained("steps = 2\n", ""), says="add epochs = 3"),
    Mistake('use = "KL"', _trained('use = "ce"', 'use = "KL"'), says="did you mean 'kl'?"),
    Mistake(
        "a recipe in JSON", json.dumps({"train": {"lr": 1e-3, "steps": 2}}), says="write [train]"
    ),
    Mistake(
        "a tab in a key", _trained("lr = 1e-3", "l\tr = 1e-3"), says="a key is one word: lr = 1e-3"
    ),
    Mistake(
        "extends in a circle",
        'extends = "b.toml"\n',
        files={"b.toml": 'extends = "r.toml"\n'},
        says="leave extends out",
    ),
    Mistake(
        "an @stage that is not there",
        OF_MODEL.replace('model = "model"', 'model = "@gone"'),
        says="add [stage.gone]",
    ),
]
TYPED = [
    Mistake("--set lr=1", arguments=_sets("lr=1"), says="did you mean train.lr?"),
    Mistake(
        "--learning_rate 1",
        arguments=("run", "r.toml", "--learning_rate", "1"),
        says="--set train.lr=VALUE",
    ),
    Mistake(
        "--set loss.temperature=2 with two losses",
        TWO,
        _sets("loss.temperature=2"),
        says="loss.2 (kl)",
    ),
    Mistake("run folder/recipe without .toml", arguments=("run", "./r"), says="r.toml"),
    Mistake("unknown run", arguments=("eval", "gone"), says="kdcore run RECIPE"),
    Mistake("ambiguous run", arguments=("eval", "r"), lay=_two_runs, says="r-aaaaaaaa"),
    Mistake(
        "--each seed=0..3",
        arguments=("run", "r.toml", "--each", "seed=0..3"),
        says="--each seed=0,1,2",
    ),
]
DATA = [
    Mistake(
        "question/answer columns",
        _data("qa.jsonl"),
        files={"qa.jsonl": _jsonl(*QA)},
        says='fields = {instruction = "question", output = "answer"}',
    ),
    Mistake(
        "records without an answer",
        _data("a.jsonl"),
        files={"a.jsonl": _jsonl(*[{"instruction": "x"}] * 9)},
        says='fields = {output = "NAME"}',
    ),
    Mistake("ShareGPT", _data("s.jsonl"), files={"s.jsonl": _jsonl(*GPT)}),
    Mistake(
        "one record a file",
        _data("one"),
        files={f"one/{n}.json": json.dumps(ASK) for n in range(9)},
    ),
    Mistake(
        "UTF-16",
        _data("u.txt", RECIPE),
        files={"u.txt": ("the quick brown fox. " * 9 + "\n\n").encode("utf-16") * 9},
    ),
    Mistake(
        "prompt longer than block",
        _data("l.jsonl"),
        files={"l.jsonl": _jsonl(*[{**ASK, "instruction": "long " * 900}] * 9)},
    ),
    Mistake(
        "all tokens masked",
        _data("m.jsonl"),
        files={"m.jsonl": _jsonl(*[{**ASK, "output": ""}] * 9)},
        says='fields = {output = "NAME"}',
    ),
    Mistake(
        "nothing to validate on",
        _trained("validation_share = 0.2\n", ""),
        says="validation_share = 0.05",
    ),
    Mistake(
        "CSV with semicolons",
        _data("c.csv", RECIPE),
        files={"c.csv": "id;text\n" + "1;the quick brown fox\n" * 40},
    ),
]
MODELS = [
    Mistake(
        "another tokenizer",
        RECIPE.replace('use = "ce"', 'use = "kl"') + TEACHER,
        says='use = "aligned"',
    ),
    Mistake("no eos", OF_MODEL, lay=lambda at: _no_eos(at / "model"), says="set eos = false"),
    Mistake(
        "no chat template",
        _data("s.jsonl", OF_MODEL.replace('use = "text"', 'use = "sft"')),
        files={"s.jsonl": _jsonl(*[ASK] * 9)},
        says='set template = "plain"',
    ),
    Mistake(
        "block above positions",
        OF_MODEL.replace("block = 32", "block = 4096"),
        lay=_config(max_position_embeddings=64),
        says="--set data.block=64",
    ),
    Mistake(
        "a teacher that is an encoder",
        TAUGHT,
        lay=_config(model_type="bert", architectures=["BertModel"]),
        says="name a causal language model",
    ),
    Mistake(
        "a vision model",
        TAUGHT,
        lay=_config(model_type="vit", architectures=["ViTModel"]),
        says="name one that writes text",
    ),
    Mistake("cuda:1 on a CPU", TAUGHT + 'device = "cuda:1"\n', says="leave `device` out"),
    Mistake("quantise without CUDA", TAUGHT + 'quantise = "4bit"\n', says="leave `quantise` out"),
    Mistake(
        "a teacher that nobody asks",
        OF_MODEL + '\n[teacher]\nuse = "hf"\nmodel = "model"\n',
        says="leave [teacher] out",
    ),
    Mistake(
        "a divergence without a teacher", _trained('use = "ce"', 'use = "kl"'), says="add [teacher]"
    ),
]
MISTAKES = [*PATHS, *TOML, *TYPED, *DATA, *MODELS]


def _no_eos(model: Path) -> None:
    path = model / "tokenizer_config.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({key: each for key, each in kept.items() if key != "eos_token"}))


def lay(folder: Path) -> None:
    """Texts, and a model with its tokenizer."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
    import tiny

    (folder / "texts").mkdir(parents=True)
    text = "\n\n".join(f"The quick brown fox number {n} jumps over a lazy dog." for n in range(40))
    (folder / "texts" / "a.txt").write_text(text)
    tiny.save(folder / "model", tokenizer=tiny.byte_tokenizer())


@dataclass(frozen=True)
class Outcome:
    """What a command ended with."""

    code: int
    lines: Sequence[str]  # of what went wrong
    says: str = ""  # what these must contain

    @property
    def wrong(self) -> bool:
        """Whether a user is left without help."""
        if self.code == 0:
            return False
        short = 0 < len(self.lines) <= MOST
        return self.code not in (1, 2) or not short or self.says not in "\n".join(self.lines)


def tried(mistake: Mistake, folder: Path, host: PluginManager) -> Outcome:
    """Type it in a folder of its own."""
    lay(folder)
    (folder / "r.toml").write_text(mistake.recipe)
    for name, content in (mistake.files or {}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    mistake.lay(folder)
    code = command(folder, host, mistake.arguments)
    text = said(folder)
    found = re.search(
        r"^(kdcore: |\S+\.toml:\d|Usage: |the command line|--set|--each)", text, re.MULTILINE
    )
    lines = text[found.start() if found and code else 0 :].strip().splitlines() if code else []
    return Outcome(code, [line for line in lines if line.strip()], mistake.says)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="parts of their names; by default all")
    parser.add_argument("--results", action="store_true", help="write the table into results/")
    asked = parser.parse_args()
    host, rows, wrong = warm(), ["| mistake | exit | lines | first |", "|---|---|---|---|"], 0
    for mistake in MISTAKES:
        if asked.names and not any(name in mistake.name for name in asked.names):
            continue
        with tempfile.TemporaryDirectory(prefix="mistake-") as folder:
            found = tried(mistake, Path(folder), host)
        first = (found.lines[0] if found.lines else "").replace("|", "\\|").replace(folder, "")
        mark = " **wrong**" if found.wrong else ""
        rows.append(f"| {mistake.name}{mark} | {found.code} | {len(found.lines)} | {first[:160]} |")
        print(rows[-1], flush=True)
        if asked.names or found.wrong:
            print("\n".join(f"    {line}" for line in found.lines[:12]), flush=True)
        wrong += found.wrong
    if asked.results:
        head = f"# {len(MISTAKES)} mistakes, {wrong} without help\n\n"
        head += "`benchmarks/robustness/mistakes.py`\n\n"
        (RESULTS / f"{date.today()}-mistakes.md").write_text(head + "\n".join(rows) + "\n")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
