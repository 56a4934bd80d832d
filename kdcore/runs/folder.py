"""Run folders: choice, locking, lookup by name, and comparison on resume."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import tomli

from kdcore.checksums import keep
from kdcore.errors import RunError, UsageError
from kdcore.files import is_full, refusal, write_whole
from kdcore.runs.lock import alone_in
from kdcore.runs.reading.metrics import METRICS


def refuse_links(folder: Path) -> None:
    """Raise RunError for a folder with a link that leads outside. The folder may be a link."""
    home = folder.resolve()
    for where, folders, files in os.walk(home):
        for path in (Path(where, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                shown = folder / path.relative_to(home)
                raise UsageError(
                    f"{shown} is a link to {os.readlink(path)}, but a run writes only inside its "
                    "folder: replace the link by its target, or remove it"
                )


FINAL = "final"
MARK = "accepted.json"  # in runs that resumed with another recipe than that of their name
CHECKPOINTS = "checkpoints"
RECIPE = "recipe.toml"  # as written
RESOLVED = "resolved.toml"
TOKENIZER = "tokenizer"
FAILURE = "failure.txt"  # why the last attempt of an unfinished run ended


def finished(folder: Path) -> bool:
    """Whether the run in this folder reached its end."""
    return (folder / FINAL).is_dir()


def choose_folder(out: Path, run_name: str, identity: str, *, fresh: bool) -> Path:
    """The folder of a run: the newest with its name and identity; with `fresh`, the next free one.

    If there is none, a finished one with another name: identities do not depend on names.
    """
    first = free = out / f"{run_name}-{identity}"
    newest = None
    for n in count(2):
        if not free.exists():
            break
        newest = newest if (free / MARK).exists() else free
        free = out / f"{first.name}-{n}"
    if fresh:
        return free
    return newest or _finished_elsewhere(out, identity) or free


def _finished_elsewhere(out: Path, identity: str) -> Path | None:
    same = re.compile(rf".*-{identity}(-\d+)?")
    found = (path for path in out.glob(f"*-{identity}*") if same.fullmatch(path.name))
    theirs = (path for path in found if finished(path) and not (path / MARK).exists())
    return max(theirs, default=None)


@contextmanager
def locked(folder: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the folder's lock; it is released when the process ends.

    With `waiting`, wait for another holder, and call `waiting` with its description.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    with alone_in(folder, waiting):
        yield


def failure_of(folder: Path) -> str | None:
    """Why the last attempt of a run ended, in one line; None if it did not fail."""
    path = folder / FAILURE
    if finished(folder) or not path.is_file():
        return None
    return path.read_text("utf-8", "replace").strip()


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the files that describe the run, unless they exist."""
    for name, text in texts.items():
        if not (folder / name).exists():
            write_whole(folder / name, text)
            if name == RESOLVED:
                keep(folder, name, folder / name)


def compare_fingerprints(folder: Path, now: Mapping[str, str], accepted: frozenset[str]) -> None:
    """Raise RunError on resume with other data, tokenizer, teacher or versions than before.

    Changes accepted by name become the new reference.
    """
    path = folder / "fingerprints.json"
    before = _fingerprints(path) if path.exists() else {}
    changed = [name for name in now if name in before and before[name] != now[name]]
    refused = [name for name in changed if name not in accepted]
    if refused:
        said = "; ".join(f"{name}: was {before[name]}, is {now[name]}" for name in refused)
        raise UsageError(
            f"{folder} was begun with something else: {said}. Type --accept "
            f"{','.join(refused)} to resume anyway, or --fresh to start again"
        )
    write_whole(path, json.dumps(dict(now), indent=1) + "\n")


def _fingerprints(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text("utf-8", "replace"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(
            f"{path} is damaged, so what the run was started with is unknown; remove that file to "
            "resume anyway, or type --fresh to start again"
        )
    return found


def refused_by_machine(problem: BaseException, folder: Path) -> RunError:
    """What the user can do about an OS error; `folder` is the run's."""
    from kdcore.training.checkpoints.folders import in_order

    said, way = refusal(problem)
    there = in_order(folder / CHECKPOINTS)
    kept = f"checkpoint {there[-1].name} is kept" if there else "there is no checkpoint yet"
    least = "; --set train.save_keep=1 takes least" if is_full(problem) else ""
    return RunError(
        f"{folder} stopped: {said}; {kept}. {way[0].upper()}{way[1:]}, and the same command "
        f"resumes{least}"
    )


def stage_of(folder: Path, run_name: str) -> str:
    """The stage of a run, by its recipe as written; "" without stages."""
    try:
        typed = tomli.loads((folder / RECIPE).read_text("utf-8", "replace"))
    except (OSError, ValueError):
        return ""
    start = f"{typed.get('name')}."
    return run_name.removeprefix(start) if run_name.startswith(start) else ""


def runs_in(out: Path) -> list[Path]:
    """The runs in a folder, most recently active first."""
    folders = [path for path in out.iterdir() if _is_run(path)] if os.path.isdir(out) else []
    return sorted(folders, key=lambda path: (_last_change(path), path.name), reverse=True)


def find_run(name: str, out: Path) -> Path:
    """The folder of a run: a path, a folder's name, a unique prefix of one, or `last`."""
    if name and _is_run(Path(name)):
        return Path(name)
    runs = runs_in(out)
    if name == "last" and runs:
        return runs[0]
    exact = [run for run in runs if run.name == name]
    found = exact or [run for run in runs if name and run.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = _some(run.name for run in found)
        raise UsageError(f"several runs in {out} begin with {name!r}: {names}; name one of them")
    raise UsageError(_no_run(name, out, [run.name for run in runs]))


def _no_run(name: str, out: Path, names: list[str]) -> str:
    if name and os.path.isdir(name):
        if held := [run.name for run in runs_in(Path(name))]:
            place = "" if Path(name).resolve() == out.resolve() else f"type --out {name} and "
            return f"{name} is a folder of runs: {place}name one of {_some(held)}"
        return f"{name} is not a run: it has no {RECIPE}"
    if not names:
        where = f"{out} holds no runs" if os.path.isdir(out) else f"there is no folder {out}"
        return f"there is no run {name!r}: {where}; kdcore run RECIPE makes one"
    near = difflib.get_close_matches(name, names, 3, 0.3) or names
    return f"there is no run {name!r} in {out}; the nearest are {_some(near)}"


def _is_run(path: Path) -> bool:
    return os.path.isfile(path / RECIPE)


def _last_change(run: Path) -> float:
    files = (run / RECIPE, run / METRICS)
    return max(file.stat().st_mtime for file in files if file.exists())


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
