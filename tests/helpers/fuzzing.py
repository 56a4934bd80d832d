"""What the fuzzers stand on: the command line called in this process, and what must always hold.

`KDCORE_FUZZ=25` tries 25 times as many cases as the suite does, drawn anew each time;
`benchmarks/robustness/fuzz.py` does so file by file and counts them.
"""

import contextlib
import io
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import tiny
import typer
from hypothesis import HealthCheck, Phase, settings

from kdcore.cli import main
from kdcore.plugin.manager import PluginManager

DOCUMENTED = (0, 1, 2, 3, 130, 143)
TIMES = float(os.environ.get("KDCORE_FUZZ", "1"))
LONG = TIMES != 1

TEXTS = "\n\n".join(tiny.TEXTS * 4) + "\n"
_HOSTS: dict[tuple[str, ...], PluginManager] = {}
_APP = typer.main.get_command(main.app)  # made once: that takes longer than most cases


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def cases(count):
    """Settings for so many cases: the same ones in each run of the suite."""
    return settings(
        max_examples=max(1, round(count * TIMES)),
        derandomize=not LONG,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )


def kdcore(*arguments):
    """`kdcore ARGUMENTS` in this process. Plugins are looked for once only."""
    log = logging.getLogger("kdcore")
    log.handlers.clear()  # what is there writes to another call's stderr
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["kdcore", *map(str, arguments)]),
        mock.patch.object(main, "app", _APP),
        mock.patch.object(main, "plugin_manager", _host_of(main.plugin_manager)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main.main()
        except SystemExit as end:
            code = end.code
    log.handlers.clear()
    return Outcome(code, out.getvalue(), err.getvalue())


def _host_of(make):
    def host_of(plugins):
        key = tuple(plugins or ())
        if key not in _HOSTS:
            _HOSTS[key] = make(plugins)
        return _HOSTS[key]

    return host_of


def ended_cleanly(outcome, codes):
    """It ended in one of these ways, and said why in words."""
    assert outcome.code in codes, f"{outcome.code}: {outcome.err[-2000:]}"
    assert "Traceback" not in outcome.err + outcome.out
    assert "a bug in kdcore" not in outcome.err
    if outcome.code:
        assert outcome.err.strip()
    return outcome


def a_world(folder: Path):
    """Models, texts and dialogues that recipes name."""
    tiny.save(folder / "model", tokenizer=tiny.byte_tokenizer())
    (folder / "texts.txt").write_text(TEXTS)
    (folder / "chat.jsonl").write_text(
        '{"instruction": "Say a.", "output": "a"}\n{"prompt": "b?", "completion": "b"}\n' * 4
    )
    (folder / "plain.toml").write_text(PLAIN)
    (folder / "taught.toml").write_text(TAUGHT)
    (folder / "staged.toml").write_text(STAGED)


PLAIN = """\
[tokenizer]
use = "hf"
model = "model"
[data]
use = "text"
path = "texts.txt"
validation_share = 0.2
block = 16
[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
[[loss]]
use = "ce"
[train]
lr = 1e-3
steps = 2
batch = 2
save_every = 1
"""
TAUGHT = """\
[tokenizer]
use = "hf"
model = "model"
[data]
use = "text"
path = "texts.txt"
validation_share = 0.2
block = 16
[student]
model = "model"
[[student.patch]]
use = "init"
scheme = "kaiming-normal"
[teacher]
use = "hf"
model = "model"
[[loss]]
use = "ce"
weight = {start = 1.0, end = 0.0, until = 0.5}
on = "all"
[[loss]]
use = "skew-kl"
skew = 0.1
temperature = 2.0
[selection]
use = "rho"
keep = 0.5
reference = {use = "cached", teacher = {use = "hf", model = "model"}}
[[eval]]
use = "agreement"
[[log]]
use = "panel"
[train]
lr = 1e-3
steps = 2
batch = 2
betas = [0.9, 0.95]
warmup = 1
eval_rows = 2
"""
STAGED = """\
name = "staged"
seed = 3
requires = ["kdcore>=0.1"]
[tokenizer]
use = "bpe"
vocab_size = 300
[data]
use = "sft"
path = "chat.jsonl"
validation_share = 0.25
template = "plain"
block = 32
rows = "one"
[[loss]]
use = "ce"
[train]
lr = 1e-3
steps = 1
batch = 2
[stage.teacher.student.config]
model_type = "gpt2"
n_embd = 16
n_layer = 1
n_head = 2
[stage.pupil.student]
model = "@teacher"
[stage.pupil.teacher]
use = "ensemble"
members = [{use = "hf", model = "@teacher"}, {use = "hf", model = "@teacher"}]
average = "probs"
[[stage.pupil.loss]]
use = "kl"
[stage.pupil.train]
epochs = 1
"""
