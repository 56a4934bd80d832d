"""The text of a new recipe: each value with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kdcore.cli.main import plugin_manager
from kdcore.commands.drafts.data_file import DataFile, columns_of
from kdcore.commands.drafts.student_choice import Choice, head_width
from kdcore.errors import RunError, UsageError

_BLOCKS = (64, 128, 256, 512, 1024, 2048)
_FITTING = 0.98  # share of documents that fit whole
_COMMENTS = 38  # column of comments
_BATCH, _LEAST_BATCH = 32, 4
_STEPS = 50  # desired steps per epoch
_HELD_OUT = (0.05, 1000)  # share of documents, and the maximum: more add no precision


@dataclass(frozen=True, eq=False)
class Measured:
    """The data in tokens."""

    lengths: np.ndarray  # tokens of each inspected document
    template: str | None  # of dialogues, if the tokenizer has none
    block: int
    share: float  # for validation
    rows: int  # for training, approximate

    @property
    def fitting(self) -> float:
        """The share of documents that fit a row."""
        return float((self.lengths <= self.block).mean())


def measure(file: DataFile, choice: Choice) -> Measured:
    """Tokenise the sample. Raises UsageError if there is nothing to train on."""
    if file.documents < 2:
        raise UsageError(f"{file.path} holds one document; validation needs another one")
    template = _template(file, choice)
    lengths = _lengths(file, choice, template)
    block = _block(lengths, choice.reach)
    share = min(_HELD_OUT[0], _HELD_OUT[1] / file.documents)
    left = max(1, file.documents - max(1, round(file.documents * share)))
    return Measured(lengths, template, block, float(f"{share:.2g}"), _rows(lengths, block, left))


def _template(file: DataFile, choice: Choice) -> str | None:
    if file.kind != "sft" or choice.tokenizer.chat_template:
        return None
    marks = {"<|im_start|>", "<|im_end|>"}
    return "chatml" if marks <= choice.tokenizer.get_vocab().keys() else "plain"


def _lengths(file: DataFile, choice: Choice, template: str | None) -> np.ndarray:
    """Lengths of the sample's documents, by the data component itself.

    Raises UsageError for a record that it cannot use.
    """
    component = _component(file.kind)
    with TemporaryDirectory(prefix="kdcore-new-") as folder:
        path = Path(folder) / "sample.jsonl"
        lines = (json.dumps(each, default=str) for each in file.sample)
        path.write_text("\n".join(lines), encoding="utf-8")
        at: dict[str, Any] = {"path": str(path), "block": 1 << 20, "rows": "one"}
        options = {k: v for k, v in file.options.items() if k not in ("column", "separator")}
        of_dialogues = {**options, "template": template} if file.kind == "sft" else {}
        data = component(**at, **of_dialogues)
        try:
            rows: Any = data.make_rows("train", choice.tokenizer, seed=0, epoch=0)
        except RunError as error:
            raise UsageError(str(error).replace(str(path), str(file.path))) from None
        lengths: np.ndarray = rows.split.lengths
    return lengths


def _component(kind: str) -> Any:
    host = plugin_manager(None)
    found = host.provided("data").get(kind)
    if found is None:
        raise UsageError(host.why_missing("data", kind))
    return found.cls


def _block(lengths: np.ndarray, reach: int) -> int:
    """The smallest that fits nearly all documents, within the reach of both models."""
    possible = [each for each in _BLOCKS if each <= reach] or [reach]
    fitting = (each for each in possible if (lengths <= each).mean() >= _FITTING)
    return next(fitting, possible[-1])


def _rows(lengths: np.ndarray, block: int, documents: int) -> int:
    """The number of rows for this many packed documents."""
    from kdcore.data.packing import pack

    rows = len(pack(lengths, block).row_lengths())
    return max(1, math.floor(rows * documents / len(lengths)))


def recipe_text(file: DataFile, choice: Choice, measured: Measured) -> str:
    """The complete recipe."""
    parts = [
        _head(file, choice),
        _student(choice),
        _teacher(choice),
        _data(file, measured),
        *_losses(),
        _train(choice, measured),
        [*_pairs("[[eval]]", ("use", "agreement", "how often both rank the same token first"))],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(file: DataFile, choice: Choice) -> list[str]:
    student = choice.student or "a fresh LLaMA"
    said = ", ".join(columns_of(file))
    return [
        f"# {student} ({_millions(choice.parameters)} parameters) learns from {choice.teacher} on",
        f"# {file.path}: {said}.",
        "# Change what you like: kdcore check finds errors, kdcore doctor looks closer, and",
        "# kdcore plan says how long and how large.",
    ]


def _student(choice: Choice) -> list[str]:
    if choice.student:
        return ["[student]", f"model = {_toml(choice.student)}"]
    heads = {"num_attention_heads": f"{head_width(choice.config['hidden_size'])} wide each"}
    why = _WHY_CONFIG | heads
    config = [(key, value, why.get(key, "")) for key, value in choice.config.items()]
    theirs = choice.served.tokenizer if choice.served else choice.teacher
    tokenizer = ("model", theirs, "its ids, so that logits can be compared")
    return [
        *_pairs("[student.config]", *config),
        "",
        *_pairs("[tokenizer]", ("use", "hf", ""), tokenizer),
    ]


def _teacher(choice: Choice) -> list[str]:
    served = choice.served
    if served is None:
        return ["[teacher]", 'use = "hf"', f"model = {_toml(choice.teacher)}"]
    api = [("api", served.api, "")] if served.api != "vllm" else []
    same = ("template", "none", "its tokenizer has no chat template: it reads the student's")
    return [
        *_pairs("[teacher]", ("use", "cached", "asked once: later epochs and runs need no server")),
        *_pairs("", ("kind", "topk", ""), ("k", served.k, "")),
        "",
        *_pairs("[teacher.teacher]", ("use", "aligned", "reads the text in its own tokenizer")),
        *([] if served.chats else _pairs("", same)),
        "",
        *_pairs("[teacher.teacher.teacher]", ("use", "served", ""), ("url", served.url, "")),
        *_pairs("", ("model", served.name, ""), *api),
        *_pairs("", ("tokenizer", served.tokenizer, "the served model's")),
        *_pairs("", ("k", served.k, "likeliest ids at each position: vLLM's default limit")),
    ]


_WHY_CONFIG = {
    "intermediate_size": "8/3 of the width",
    "num_hidden_layers": "with this width, the size that was asked for",
    "tie_word_embeddings": "the head is the embeddings: a small student has no room for two",
}


def _data(file: DataFile, measured: Measured) -> list[str]:
    learned = "the answers are learned, the prompts are not" if file.kind == "sft" else ""
    options = [(key, value, file.note) for key, value in file.options.items()]
    if measured.template is not None:
        said = "the tokenizer brings no chat template"
        options.append(("template", measured.template, said))
    held_out = max(1, round(measured.share * file.documents))
    said = f"{held_out:,} documents, the same for every seed"
    return [
        *_pairs("[data]", ("use", file.kind, learned), ("path", file.path, ""), *options),
        *_pairs("", ("block", measured.block, _why_block(file, measured))),
        *_pairs("", ("validation_share", measured.share, said)),
    ]


def _why_block(file: DataFile, measured: Measured) -> str:
    lengths = measured.lengths
    longest = f"the longest has {int(lengths.max()):,} tokens"
    if measured.fitting == 1:
        return f"all fit whole: {longest}"
    what = "loses text of its prompt" if file.kind == "sft" else "is cut in pieces"
    return f"{measured.fitting:.1%} fit whole; {longest}, and {what}"


def _losses() -> Iterator[list[str]]:
    weight = ("weight", 0.5, "half from the text, which a teacher may not know")
    yield [*_pairs("[[loss]]", ("use", "ce", ""), weight)]
    other = ("weight", 0.5, "half from the teacher's distribution over all tokens")
    warm = ("temperature", 1.0, "the distribution that it writes with")
    yield [*_pairs("[[loss]]", ("use", "kl", ""), other, warm)]


def _train(choice: Choice, measured: Measured) -> list[str]:
    batch = batch_of(measured.rows)
    few = "" if batch == _BATCH else f": few, as there are {measured.rows:,} rows"
    steps = max(1, measured.rows // batch)
    kind = "loaded" if choice.student else "fresh"
    size = _millions(choice.parameters)
    return [
        *_pairs(
            "[train]",
            ("epochs", 1, f"about {steps:,} steps; more epochs help where these are few"),
            ("batch", batch, f"rows in a step, whatever the hardware{few}"),
            ("lr", choice.rate, f"of a {kind} student of {size}: docs/your-model.md has the table"),
            ("warmup", 0.05, "of the steps: AdamW's first estimates are poor"),
        )
    ]


def batch_of(rows: int) -> int:
    """32, or a lower power of two if an epoch would have too few steps; at most all rows."""
    batch = _BATCH
    while batch > _LEAST_BATCH and rows // batch < _STEPS:
        batch //= 2
    return min(batch, rows)


def _pairs(title: str, *pairs: tuple[str, object, str]) -> Iterator[str]:
    """Keys and values, each with its reason."""
    if title:
        yield title
    for key, value, reason in pairs:
        line = f"{key} = {_toml(value)}"
        yield f"{line:{_COMMENTS - 2}}  # {reason}" if reason else line


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _millions(count: int) -> str:
    unit, letter = next(((u, s) for u, s in ((1e9, "B"), (1e6, "M")) if count >= u), (1e3, "k"))
    return f"{count / unit:.3g}{letter}"
