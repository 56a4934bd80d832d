"""Runs that never ran: fixed numbers, as the engine tells them and as a run folder keeps them."""

import io
import math
import os
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import tomli_w
from rich.console import Console

from kdcore import Record
from kdcore.runs.reading.metrics import evaluation_line, to_json, training_line

_CLOCK = count()  # so that no two runs were busy at the same time
_EXPECTED = Path(__file__).parents[1] / "plugins" / "expected"
_TABLE = {
    "student": {
        "config": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2},
        "patch": [{"use": "init", "scheme": "normal"}],
    },
    "teacher": {"use": "qwen", "model": "Qwen/Qwen2.5-1.5B", "dtype": "auto"},
    "loss": [
        {"use": "ce", "weight": 0.5, "on": "kept"},
        {"use": "kl", "weight": 0.5, "on": "kept", "temperature": 2.0, "scale_by_t2": True},
    ],
    "train": {"lr": 0.006, "epochs": 3.0, "batch": 8},
}
_SELECTION = {
    "use": "rho",
    "keep": 0.6,
    "reference": {"use": "cached", "teacher": {"use": "qwen", "model": "Qwen/Qwen2.5-1.5B"}},
}
FORMULA = "loss = 0.5 * mean_kept(CE(q(1), y))\n     + 0.5 * mean_kept(4 * KL(p(2), q(2)))"
STORY = "Once upon a time\nthere was a \x1b[31mred ball\x07. " + "It rolled and rolled. " * 9


def fake_run(folder, **changes):
    """What the loggers ask of a run."""
    stage = SimpleNamespace(
        name="kd", run_name="quickstart.kd", table={**_TABLE, "selection": _SELECTION}
    )
    about = dict(
        recipe=stage,
        folder=Path(folder),
        main=True,
        seed=0,
        step=0,
        steps=300,
        tokens=0,
        epochs=3.0,
        documents_in_step=0.0,
        objective=FORMULA,
        device=SimpleNamespace(type="cpu"),
        student=SimpleNamespace(num_parameters=lambda: 351_000),
    )
    return SimpleNamespace(**{**about, **changes})


def a_record(step, **changes):
    """A record of falling losses."""
    ce, kl = 0.5 + 2.5 * math.exp(-step / 50), 0.1 + 1.5 * math.exp(-step / 60)
    about = dict(
        step=step,
        tokens=step * 900,
        loss=ce + kl,
        terms={"ce": 2 * ce, "kl": 2 * kl},
        weights={"ce": 0.5, "kl": 0.5},
        lr=6e-3 * (1 - step / 300),
        kept=0.6,
        tokens_per_second=12345.6,
        selection={"threshold": 0.4},
    )
    return Record(**{**about, **changes})


def some_scores(step):
    """Scores of every kind: falling, rising, text."""
    nll = 1 + 3 * math.exp(-step / 80)
    return {
        "nll": nll,
        "perplexity": math.exp(nll),
        "bits_per_byte": nll / 2.9,
        "agreement": 0.8 - 0.5 * math.exp(-step / 90),
        "story": STORY,
    }


def some_lines(until=300):
    """The metrics of a run: a record each 10 steps, scores each 100."""
    lines = [evaluation_line(0, some_scores(0))]
    for step in range(10, until + 1, 10):
        lines.append(training_line(a_record(step)))
        if step % 100 == 0:
            lines.append(evaluation_line(step, some_scores(step)))
    return [
        {
            "stage": "kd",
            "tokens": line["step"] * 900,
            "time": 1e9,
            "elapsed": line["step"] / 4,
            "cpu_seconds": line["step"] / 2,
        }
        | line
        for line in lines
    ]


def keep_run(out, name, *, lines=None, finished=True, old=False, **table):
    """A run folder with metrics; `table` changes the resolved recipe."""
    folder = Path(out) / name
    folder.mkdir(parents=True)
    run_name = name.rpartition("-")[0]
    settings = {"name": run_name, "seed": 0, **_TABLE, **table}
    if not old:
        settings["train"] = {"eval_seed": 0} | settings.get("train", {})
    (folder / "recipe.toml").write_text("")
    (folder / "resolved.toml").write_text(tomli_w.dumps(settings))
    text = "".join(to_json(line) + "\n" for line in (some_lines() if lines is None else lines))
    (folder / "metrics.jsonl").write_text(text)
    if finished:
        (folder / "final").mkdir()
    when = 1e9 + next(_CLOCK)
    for file in folder.glob("*.*"):
        os.utime(file, (when, when))
    return folder


def drawn(renderable, width, height=50):
    """Text of a renderable, as on a terminal of this size."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def expect(name, text):
    """Compare with the text kept in tests/plugins/expected; KDCORE_EXPECT=write keeps it anew."""
    path = _EXPECTED / f"{name}.txt"
    if os.environ.get("KDCORE_EXPECT") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
