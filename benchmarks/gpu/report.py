"""What a GPU day found, as one Markdown file and a few lines for the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parts import FIRST
from world import is_met

Results = Mapping[str, Mapping[str, Any]]
"""By part, in order: `status` "done", "failed" or "skipped", `seconds`, `result` or `error`."""

WAYS = ("kdcore", "bare", "Liger")
OTHERS = ("option, ", "card, ")


def read(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What there is of these parts."""
    paths = {name: path_of(folder, name) for name in names}
    return {name: json.loads(p.read_text()) for name, p in paths.items() if p.exists()}


def path_of(folder: Path, name: str) -> Path:
    """Where the result of a part lies."""
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"


def below(results: Results) -> list[str]:
    """Each figure that is not what it should be, and each part that failed."""
    found = []
    for name, one in results.items():
        if one["status"] == "failed":
            found.append(f"{name} failed: {last_line(one['error'])}")
        for target in one.get("result", {}).get("targets", []):
            if not is_met(target):
                found.append(f"{name}: {_judged(target)}")
    return found


def _judged(target: Mapping[str, Any]) -> str:
    least, most = (target[key] for key in ("least", "most"))
    wanted = [f"at least {least:.4g}"] if least is not None else []
    wanted += [f"at most {most:.4g}"] if most is not None else []
    return f"{target['what']}: {_number(target['measured'])} ({', '.join(wanted)})"


def markdown(results: Results, names: Sequence[str], day: str, *, rehearse: bool) -> str:
    """The whole file."""
    machine = results.get("machine", {}).get("result", {})
    lines = [f"# A GPU day: {machine.get('card', 'an unknown card')}, {day}", ""]
    lines += ["`make gpu`: random weights and tokens of the real shapes, no network.", ""]
    if rehearse:
        lines += ["**A rehearsal with tiny shapes: no figure here means anything.**", ""]
    lines += _pairs(machine)
    lines += ["## Below target", "", *_listed(below(results)), ""]
    lines += ["## Founding recipes", "", _ABOUT_RECIPES, "", *_recipes(results), ""]
    lines += ["## The head", "", *_head(results.get("head", {}).get("result", {})), ""]
    lines += ["## Options and smaller cards", "", *_others(results), ""]
    lines += ["## Generated answers", "", *_listed([*_written(results)]), ""]
    shown = {"machine", "head", *(f"{stage}, {way}" for stage in FIRST for way in WAYS)}
    shown |= {name for name in names if name.startswith(OTHERS)}
    for name, one in results.items():
        if name not in shown and one["status"] == "done":
            lines += [f"## {name[0].upper()}{name[1:]}", "", *_pairs(one["result"])]
    lines += ["## Kernels of a step", "", *_kernels(results), ""]
    lines += ["## Not done", "", *_listed([*_missing(results, names)]), ""]
    return "\n".join(lines)


_ABOUT_RECIPES = (
    "A step's time is the mean of the last of four windows (three of the bare loop). Memory "
    "is what the process took of the GPU, CUDA's own included; planned is what `kdcore plan` says "
    "with the same rows at once. Bare: transformers, torch and a loop on the same rows."
)


def _recipes(results: Results) -> Iterator[str]:
    yield "| recipe | | rows at once | ms a step | tokens/s | MFU | GiB | planned | of planned |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for stage in FIRST:
        for way in WAYS:
            one = results.get(f"{stage}, {way}")
            if one is None:
                continue
            if one["status"] != "done":
                cells = [f"{one['status']}: {last_line(one['error'])}", *6 * [""]]
            else:
                cells = [*_row(one["result"])]
            yield f"| {stage} | {way} | {' | '.join(cells)} |"


def _others(results: Results) -> Iterator[str]:
    yield "| | rows at once | ms a step | tokens/s | GiB | planned | of planned |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in results.items():
        if name.startswith(OTHERS) and one["status"] == "done":
            cells = [*_row(one["result"])]
            yield f"| {name} | {' | '.join([*cells[:3], *cells[4:]])} |"


def _written(results: Results) -> Iterator[str]:
    """Tokens a second that were generated."""
    for name, one in results.items():
        pairs = {k: v for k, v in one.get("result", {}).items() if k.startswith("written, ")}
        if pairs:
            yield f"{name}: " + ", ".join(f"{k[9:]} {_number(v)}" for k, v in pairs.items())


def _row(found: Mapping[str, Any]) -> Iterator[str]:
    taken, planned = found["memory"]["taken"], found.get("planned", {}).get("peak")
    yield str(found["rows at once"])
    yield f"{found['ms']:.2f}"
    yield f"{found['tokens/s']:,.0f}"
    yield "" if found["MFU"] is None else f"{found['MFU']:.1%}"
    yield f"{taken:.2f}"
    yield "" if planned is None else f"{planned:.2f}"
    yield "" if planned is None else f"{taken / planned:.2f}"


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| variant, loss, tokens | ms | GiB | loss |"
    yield "|---|---|---|---|"
    for name, one in found.get("table", {}).items():
        if "error" in one:
            yield f"| {name} | {one['error']} | | |"
        else:
            yield f"| {name} | {one['ms']:.2f} | {one['GiB']:.2f} | {one['loss']:.5f} |"


def _kernels(results: Results) -> Iterator[str]:
    yield "| recipe | kernels | GPU busy, ms | longest, ms |"
    yield "|---|---|---|---|"
    for stage in FIRST:
        found = results.get(f"{stage}, kdcore", {}).get("result", {})
        if found.get("kernels"):
            named = "; ".join(f"`{name}` {ms:.2f}" for name, ms in found["longest"].items())
            yield f"| {stage} | {found['kernels']:,} | {found['busy_ms']:.2f} | {named} |"


def _missing(results: Results, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name not in results:
            yield f"{name}: not reached"
        elif results[name]["status"] != "done":
            yield f"{name} ({results[name]['status']}): {last_line(results[name]['error'])}"


def _pairs(found: Mapping[str, Any]) -> list[str]:
    """A small table of what is no target; of those, each with its verdict."""
    lines = ["| | |", "|---|---|"]
    for key, value in found.items():
        if key in ("targets", "longest"):
            continue
        inside = value.items() if isinstance(value, Mapping) else [("", value)]
        lines += [f"| {key}{', ' * bool(k)}{k} | {_number(v)} |" for k, v in inside]
    for target in found.get("targets", []):
        verdict = "ok" if is_met(target) else "**below target**"
        lines.append(f"| {_judged(target)} | {verdict if target['judged'] else 'not judged'} |")
    return [*lines, ""]


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _listed(lines: Sequence[str]) -> list[str]:
    return [f"- {line}" for line in lines] or ["Nothing."]


def last_line(text: str) -> str:
    """What an error comes down to, fit for a table."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip().replace("|", "/")[:200] if lines else "no word"
