"""Store what teachers say ahead of a run, and look after what is stored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from kdcore_cached.catalogue import Kept, find_store, stores_in
from kdcore_rollouts.kept import Answers, answers_in
from rich.text import Text

from kdcore.cli.examples import as_epilog
from kdcore.cli.main import plugin_manager
from kdcore.commands.fitting import Column, Fitting
from kdcore.commands.output import AsJson, Plugins, print_json, tell
from kdcore.errors import Interrupted, RunError, UsageError
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.open import not_begun, open_stage
from kdcore.terminal.bars import progress
from kdcore.terminal.formatting import disk_size, duration, percent
from kdcore.training.signals import Signals

if TYPE_CHECKING:
    from kdcore_cached.building import Work
    from kdcore_rollouts.building import Writing

cache = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Store what teachers say ahead of a run, and look after what is stored.",
)

Out = Annotated[Path, typer.Option(help="Where runs are kept; stores are in its caches/.")]
StageName = Annotated[
    str | None,
    typer.Option("--stage", help="Only this stage; by default all that have a cached teacher."),
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="Change a key of the recipe.")
]


@cache.command(epilog=as_epilog("kdcore cache build mine.toml"))
def build(
    recipe: Annotated[str, typer.Argument(help="A path, or the name of a shipped recipe.")],
    stage: StageName = None,
    sets: Sets = None,
    out: Out = Path("runs"),
    plugins: Plugins = None,
) -> None:
    """Fill a recipe's teacher caches ahead of its run, and store completions of its rollouts.

    Resumes where it was interrupted.
    """
    for works, answers in _opened(recipe, stage, sets, out, plugin_manager(plugins)):
        if works:
            tell(_planned(works))
        for work in works:
            with _progress(f"{work.label}, {work.split}", len(work.rows)) as done:
                kept, new = work.build(done)
            there, of = kept.share()
            said = f"{new:,} tokens stored" if new else "nothing was missing"
            tell(Text(f"{kept.folder}: {said}; it holds {percent(there)} {of}"))
        for each in answers:
            with _progress(each.label, len(each.prompts), "prompts") as done:
                new = each.build(done)
            said = f"{new:,} answers written" if new else "nothing was missing"
            tell(Text(f"{each.kept.folder}: {said}; {_counted(each.kept)}"))


@cache.command(epilog=as_epilog("kdcore cache export answers-served-0123456789ab answers.jsonl"))
def export(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="A store of answers: its name, or the end of it.")
    ],
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The JSON lines file to write.")],
    out: Out = Path("runs"),
) -> None:
    """Export stored completions as dialogues that the data `sft` reads."""
    from kdcore_rollouts.building import export as write

    found = _find(store, out / "caches")
    if not isinstance(found, Answers):
        raise UsageError(f"{found.folder.name} holds no answers: kdcore cache ls shows which do")
    print(f"{path}: {write(found, path):,} dialogues; {_counted(found)}")


@cache.command(
    epilog=as_epilog("kdcore cache verify", "kdcore cache verify mine.toml --sample 500")
)
def verify(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE|STORE]", help="By default all stores, without loading teachers."
        ),
    ] = None,
    stage: StageName = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Tokens to compare with the live teacher.")
    ] = 2000,
    sets: Sets = None,
    out: Out = Path("runs"),
    plugins: Plugins = None,
) -> None:
    """Check caches for damage; for a recipe, also compare a sample with the live teacher."""
    caches = out / "caches"
    everything = _all(caches)
    named = what is not None and any(one.folder.name == Path(what).name for one in everything)
    if what is None or named:
        stores = everything if what is None else [_find(what, caches)]
        wrong = [said for one in stores if (said := _examined(one))]
    else:
        wrong = []
        for works, _ in _opened(what, stage, sets, out, plugin_manager(plugins)):
            wrong += [said for work in works for said in _compared(work, sample)]
    if wrong:
        raise RunError("\n".join(wrong))


@cache.command(epilog=as_epilog("kdcore cache ls"))
def ls(out: Out = Path("runs"), as_json: AsJson = False) -> None:
    """List caches: teacher and data, size on disk, and how much is stored."""
    rows = [_line_of(one) for one in _all(out / "caches")]
    if as_json:
        print_json(rows)
    elif not rows:
        tell(Text(f"no stores in {out / 'caches'} yet; kdcore cache build RECIPE makes them"))
    else:
        tell(_table_of(rows))


@cache.command(epilog=as_epilog("kdcore cache rm 0123456789ab --yes"))
def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="STORE...", help="Names of stores, or the ends of them.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    out: Out = Path("runs"),
) -> None:
    """Remove caches. They are filled again when needed."""
    from kdcore_cached.store import remove

    found = list({one.folder: one for one in (_find(n, out / "caches") for n in names)}.values())
    for one in found:
        print(f"{one.folder}: {disk_size(one.bytes)}")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nothing was removed: without a terminal to ask on, type --yes")
        typer.confirm(f"remove {'it' if len(found) == 1 else f'these {len(found)}'}?", abort=True)
    for one in found:
        remove(one.folder)


def _all(caches: Path) -> list[Kept | Answers]:
    """Teacher caches, then stored completions."""
    return [*stores_in(caches), *answers_in(caches)]


def _find(name: str, caches: Path) -> Kept | Answers:
    """The cache with this name or unique suffix."""
    ends = [one for one in answers_in(caches) if one.folder.name.endswith(Path(name).name)]
    return ends[0] if len(ends) == 1 else find_store(name, caches)


def _opened(
    name: str, stage: str | None, sets: Sequence[str] | None, out: Path, host: PluginManager
) -> Iterator[tuple[list[Work], list[Writing]]]:
    """The caching work of each stage that has any, while its run is open."""
    from kdcore_cached.building import cached_in, works
    from kdcore_rollouts.building import keeping_in, writings

    recipe = read_recipe(name, host, sets=sets or ())
    there = [each.name for each in recipe.stages]
    if stage is not None and stage not in there:
        known = ", ".join(there) or "it has none"
        raise UsageError(f"recipe {recipe.name!r} has no stage {stage!r}: {known}")
    asked = [each for each in there if stage in (None, each)]
    built = {each: recipe.build(each) for each in asked}
    found = [each for each, one in built.items() if cached_in(one) or keeping_in(one)]
    if not found:
        which = f"the stage {stage!r}" if stage else f"recipe {recipe.name!r}"
        raise UsageError(
            f'{which} has no cached teacher; wrap one: {{use = "cached", kind = "topk", teacher = '
            "{...}}"
        )
    for each in found:
        # The end-of-text ids of a teacher's completions depend on the student's weights.
        loads = any(one.name != "served" for one in keeping_in(built[each]))
        with not_begun(recipe, each, out) as request:
            run = open_stage(request, upto="weights" if loads else "ids")
            yield list(works(run)), list(writings(run))


@contextmanager
def _progress(label: str, rows: int, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, otherwise a line per tenth; on standard error."""
    with Signals() as signals, progress(f"storing {label}", rows, unit) as bar:
        seen = 0

        def done(some: int) -> None:
            nonlocal seen
            before, seen = seen, seen + some
            bar.advance(some)
            if number := signals.take():  # everything read so far is stored by now
                raise Interrupted(f"{label}: interrupted; the same command resumes", number)
            if not sys.stderr.isatty() and 10 * before // rows != 10 * seen // rows:
                left = f", {duration(bar.remaining())} left" if seen < rows else ""
                print(f"{label}: {percent(seen / rows)} of {rows:,} {unit}{left}", file=sys.stderr)

        yield done


def _examined(store: Kept | Answers) -> str | None:
    """Report that a cache is complete, or return what is wrong with it."""
    if problem := store.error():
        return f"{store.folder}: {problem}; kdcore cache rm {store.folder.name} removes it"
    if isinstance(store, Answers):
        if torn := store.torn():
            return f"{store.folder}: {torn:,} torn lines will be requested again when needed"
        tell(Text(f"{store.folder}: whole; {_counted(store)}"))
        return None
    with progress(f"verifying {store.folder.name}", store.tokens, "tokens") as bar:
        torn = store.forget_broken(bar.advance)
    if torn:
        return f"{store.folder}: {torn:,} torn slots are now marked as missing"
    there, of = store.share()
    tell(Text(f"{store.folder}: whole; it holds {percent(there)} {of}"))
    return None


def _compared(work: Work, sample: int) -> Iterator[str]:
    """Report how a cache compares with its teacher, or yield what is wrong with it."""
    if not work.folder.exists():
        yield f"{work.label}, {work.split}: nothing is stored; kdcore cache build stores it"
        return
    if said := _examined(Kept(work.folder)):
        yield said
    with progress(f"comparing {work.label} with its teacher"):
        found = work.compare(sample)
    facts = (
        f"{found.tokens:,} tokens against the live teacher: off by {found.mean:.2g} on average and "
        f"by {found.largest:.2g} at most; {found.missing:,} more are missing"
    )
    if not found.tokens:
        yield f"{work.folder}: none of {found.missing:,} sampled tokens is stored"
    elif found.is_small:
        tell(Text(f"{work.folder}: {facts}"))
    else:
        yield f"{work.folder}: {facts}; rounding stays below {found.tolerance:g}"


def _planned(works: Sequence[Work]) -> Fitting:
    """What will be stored, and how much of it is already."""
    sizes = [work.bytes_per_token * work.tokens for work in works]
    return Fitting(
        [
            Column("teacher", [work.label for work in works], 5, is_number=False),
            Column("of", [work.split for work in works], 4, is_number=False),
            Column("kind", [work.teacher.kind for work in works], 6, is_number=False),
            Column("bytes/token", [f"{work.bytes_per_token:,}" for work in works], 7),
            Column("tokens", [f"{work.tokens:,}" for work in works], 8),
            Column("stored", [f"{work.stored:,}" for work in works], 8),
            Column("in all", [disk_size(each) for each in sizes], 9),
        ],
        whole="a wider terminal has all",
    )


def _counted(answers: Answers) -> str:
    """The number of completions, and of omitted ones."""
    counts = answers.counts()
    left_out = [f"{n:,} {why}" for why, n in counts.items() if n and why != "kept"]
    said = f"{counts['kept']:,} answers"
    return f"{said}, left out: {', '.join(left_out)}" if left_out else said


def _line_of(store: Kept | Answers) -> dict[str, object]:
    """A cache on one line, or what is wrong with it."""
    problem = store.error()
    line: dict[str, object] = {"store": store.folder.name, "fault": problem, "bytes": store.bytes}
    if problem:
        return line
    if isinstance(store, Answers):
        return line | {"teacher": store.about["teacher"], "kind": "answers"} | store.counts()
    there, of = store.share()
    return line | {
        "teacher": store.about["teacher"],
        "data": store.about["data"],
        "split": store.meta["split"],
        "kind": store.meta["kind"],
        "context": store.meta["context"],
        "tokens": store.tokens,
        "there": there,
        "there_of": of,
    }


def _table_of(rows: Sequence[dict[str, object]]) -> Fitting:
    """The lines, aligned."""

    def column(title: str, key: str, importance: int) -> Column:
        return Column(title, [str(row.get(key, "-")) for row in rows], importance, is_number=False)

    there = [str(row["fault"] or _there(row)) for row in rows]
    return Fitting(
        [
            column("store", "store", 9),
            column("teacher", "teacher", 6),
            column("data", "data", 3),
            column("kind", "kind", 7),
            column("context", "context", 2),
            Column("tokens", [f"{row.get('tokens', 0):,}" for row in rows], 4),
            Column("size", [disk_size(int(str(row["bytes"]))) for row in rows], 8),
            Column("there", there, 5),
        ],
        whole="--json has all",
    )


def _there(row: Mapping[str, object]) -> str:
    if "kept" in row:
        return f"{row['kept']:,} answers"
    return f"{percent(float(str(row['there'])))} {row['there_of']}"
