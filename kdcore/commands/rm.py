"""`kdcore rm`: remove runs that nothing else needs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tomli
import typer

from kdcore.cli.examples import examples
from kdcore.errors import RunError, UsageError
from kdcore.files import remove_folder
from kdcore.runs.folder import CHECKPOINTS, find_run, finished, locked, runs_in
from kdcore.runs.reading.metrics import LOG
from kdcore.terminal.formatting import disk_size

_ENDED = re.compile(r" ends after step \d+ of \d+: (\w+): ")
_NO_FAILURES = ("Interrupted", "KeyboardInterrupt")


@examples("kdcore rm quickstart.kd", "kdcore rm --failed --yes")
def rm(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Paths, names or prefixes.")
    ] = None,
    failed: Annotated[
        bool,
        typer.Option("--failed", help="All that ended with an error or have no checkpoint."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Remove runs. Asks first, and keeps runs that other runs or teacher caches need."""
    asked = list(dict.fromkeys(find_run(name, out) for name in runs or ()))
    if not asked and not failed:
        raise UsageError("name runs to remove, or type --failed (kdcore show lists them)")
    found = [*asked, *(_unneeded_failures(out, asked) if failed else ())]
    _refuse_needed(asked, found, out)
    for folder in found:
        _refuse_busy(folder)
        print(f"{folder}: {_state(folder)}, {disk_size(_bytes(folder))}")
    if not found:
        print(f"no run in {out} has failed")
        return
    if not yes:
        _ask(len(found))
    for folder in found:
        with locked(folder):
            remove_folder(folder)


def _ask(count: int) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nothing was removed: without a terminal to ask on, type --yes")
    typer.confirm(f"remove {'it' if count == 1 else f'these {count}'}?", abort=True)


def _unneeded_failures(out: Path, asked: Sequence[Path]) -> Iterator[Path]:
    for folder in runs_in(out):
        if folder in asked or not has_failed(folder):
            continue
        users = list(_users(folder, out, [*asked, folder]))
        why = f"{', '.join(users)} needs it" if users else _why_not(folder)
        if why is not None:
            print(f"{folder} is left: {why}", file=sys.stderr)
        else:
            yield folder


def has_failed(folder: Path) -> bool:
    """Whether an unfinished run ended with an error, or has no checkpoint to resume from.

    Interrupted runs with a checkpoint do not count.
    """
    if finished(folder):
        return False
    log = folder / LOG
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    ends = _ENDED.findall(text)
    by_error = bool(ends) and ends[-1] not in _NO_FAILURES
    return by_error or not any((folder / CHECKPOINTS).glob("*"))


def _refuse_needed(asked: Sequence[Path], leaving: Sequence[Path], out: Path) -> None:
    """Raise UsageError, before anything is removed, if remaining runs need one of these."""
    needed = {folder: list(_users(folder, out, leaving)) for folder in asked}
    lines = [
        f"{folder} is needed by {', '.join(users)}" for folder, users in needed.items() if users
    ]
    if lines:
        raise UsageError(
            "\n".join(lines) + "\nnothing was removed: name these too (kdcore cache rm removes "
            "stores), or leave what they need"
        )


def _users(folder: Path, out: Path, leaving: Sequence[Path]) -> Iterator[str]:
    """The runs and caches that refer to a run's model, except those being removed too.

    A run's name contains a hash: any path to it has the name as one of its parts.
    """
    gone = {each.resolve() for each in leaving}
    for other in runs_in(out):
        named = (part for text in _texts(other) for part in Path(text).parts)
        if other.resolve() not in gone and folder.name in named:
            yield str(other)
    # Whatever made a cache says in a JSON file in it which models it used.
    notes = (out / "caches").glob("[!.]*/*.json")
    model = f"{folder.name}/"
    yield from sorted({str(n.parent) for n in notes if model in n.read_text("utf-8", "replace")})


def _texts(folder: Path) -> Iterator[str]:
    """All texts in a run's recipe; an unreadable one counts as a single text."""
    path = folder / "resolved.toml"
    if not path.is_file():
        return
    text = path.read_text("utf-8", "replace")
    try:
        yield from _in(tomli.loads(text))
    except tomli.TOMLDecodeError:
        yield from re.findall(r'"([^"\n]*)"', text)


def _in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        yield from _in(each)


def _why_not(folder: Path) -> str | None:
    """Why a run cannot be removed: an active process, or a link in it; None if it can."""
    try:
        with locked(folder):
            return None
    except RunError:
        return "it is running; stop it first"
    except UsageError as error:
        return str(error)


def _refuse_busy(folder: Path) -> None:
    why = _why_not(folder)
    if why is not None:
        raise UsageError(f"{folder} is left, and nothing was removed: {why}")


def _state(folder: Path) -> str:
    if finished(folder):
        return "finished"
    return "failed" if has_failed(folder) else "unfinished"


def _bytes(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if not path.is_symlink() and path.is_file())
    return sum(path.stat().st_size for path in files)
