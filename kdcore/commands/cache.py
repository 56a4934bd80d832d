"""Store what teachers say ahead of a run, and look after what is stored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from kdcore_cached.catalogue import Kept, find_store, stores_in
from rich.text import Text

from kdcore.cli.examples import as_epilog
from kdcore.cli.main import plugin_manager
from kdcore.commands.cache_tables import line_of, planned, size, table_of
from kdcore.commands.output import AsJson, Plugins, print_json, tell
from kdcore.errors import RunError, UsageError
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.open import not_begun, open_stage
from kdcore.terminal.bars import progress
from kdcore.terminal.formatting import percent

if TYPE_CHECKING:
    from kdcore_cached.building import Work

cache = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Store what teachers say ahead of a run, and look after what is stored.",
)

Out = Annotated[Path, typer.Option(help="Where runs are kept; their stores lie in caches/ there.")]
StageName = Annotated[
    str | None, typer.Option("--stage", help="One stage; by default all with a cached teacher.")
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
    """Store what a recipe's cached teachers will be asked. It goes on where it was interrupted."""
    for works in _opened(recipe, stage, sets, out, plugin_manager(plugins)):
        tell(planned(works))
        for work in works:
            with _progress(f"{work.label}, {work.split}", len(work.rows)) as done:
                kept, new = work.build(done)
            there, of = kept.share()
            said = f"{new:,} tokens stored" if new else "nothing was missing"
            tell(Text(f"{kept.folder}: {said}; it holds {percent(there)} {of}"))


@cache.command(
    epilog=as_epilog("kdcore cache verify", "kdcore cache verify mine.toml --sample 500")
)
def verify(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE|STORE]", help="By default every store, without teachers."),
    ] = None,
    stage: StageName = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Tokens to compare with the live teacher.")
    ] = 2000,
    sets: Sets = None,
    out: Out = Path("runs"),
    plugins: Plugins = None,
) -> None:
    """Look for damage; of a recipe's stores also compare a sample with the live teacher."""
    caches = out / "caches"
    named = what is not None and any(
        one.folder.name == Path(what).name for one in stores_in(caches)
    )
    if what is None or named:
        stores = stores_in(caches) if what is None else [find_store(what, caches)]
        wrong = [said for one in stores if (said := _examined(one))]
    else:
        wrong = []
        for works in _opened(what, stage, sets, out, plugin_manager(plugins)):
            wrong += [said for work in works for said in _compared(work, sample)]
    if wrong:
        raise RunError("\n".join(wrong))


@cache.command(epilog=as_epilog("kdcore cache ls"))
def ls(out: Out = Path("runs"), as_json: AsJson = False) -> None:
    """List what is stored: of which teacher and data, how many bytes, how much of it is there."""
    rows = [line_of(one) for one in stores_in(out / "caches")]
    if as_json:
        print_json(rows)
    elif not rows:
        tell(Text(f"no stores in {out / 'caches'} yet; kdcore cache build RECIPE makes them"))
    else:
        tell(table_of(rows))


@cache.command(epilog=as_epilog("kdcore cache rm 0123456789ab --yes"))
def rm(
    names: Annotated[list[str], typer.Argument(metavar="STORE...", help="Names, or their ends.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    out: Out = Path("runs"),
) -> None:
    """Remove stores. What is asked for again is stored again."""
    from kdcore_cached.store import remove

    found = list(
        {one.folder: one for one in (find_store(n, out / "caches") for n in names)}.values()
    )
    for one in found:
        print(f"{one.folder}: {size(one.bytes)}")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nothing was removed: without a terminal to ask on, type --yes")
        typer.confirm(f"remove {'it' if len(found) == 1 else f'these {len(found)}'}?", abort=True)
    for one in found:
        remove(one.folder)


def _opened(
    name: str, stage: str | None, sets: Sequence[str] | None, out: Path, host: PluginManager
) -> Iterator[list[Work]]:
    """The work of each stage that has a cached teacher, while its run is open."""
    from kdcore_cached.building import cached_in, works

    recipe = read_recipe(name, host, sets=sets or ())
    there = [each.name for each in recipe.stages]
    if stage is not None and stage not in there:
        raise UsageError(f"recipe {recipe.name!r} has no stage {stage!r}: {', '.join(there)}")
    asked = [each for each in there if stage in (None, each)]
    found = [each for each in asked if cached_in(recipe.build(each))]
    if not found:
        which = f"the stage {stage!r}" if stage else f"recipe {recipe.name!r}"
        raise UsageError(
            f'{which} has no cached teacher; wrap one: {{use = "cached", kind = "topk", teacher = '
            "{...}}"
        )
    for each in found:
        with not_begun(recipe, each, out) as request:
            yield list(works(open_stage(request, upto="ids")))


@contextmanager
def _progress(label: str, rows: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line for each tenth elsewhere; both to standard error."""
    with progress(f"storing {label}", rows, "rows") as bar:
        seen = 0

        def done(some: int) -> None:
            nonlocal seen
            before, seen = seen, seen + some
            bar.advance(some)
            if not sys.stderr.isatty() and 10 * before // rows != 10 * seen // rows:
                print(f"{label}: {percent(seen / rows)} of {rows:,} rows", file=sys.stderr)

        yield done


def _examined(store: Kept) -> str | None:
    """Says that a store is whole, or returns what is wrong with it."""
    if fault := store.fault():
        return f"{store.folder}: {fault}; kdcore cache rm {store.folder.name} removes it"
    with progress(f"verifying {store.folder.name}", store.tokens, "tokens") as bar:
        torn = store.forget_broken(bar.advance)
    if torn:
        return f"{store.folder}: {torn:,} torn slots, which are marked as missing now"
    there, of = store.share()
    tell(Text(f"{store.folder}: whole; it holds {percent(there)} {of}"))
    return None


def _compared(work: Work, sample: int) -> Iterator[str]:
    """Says how a store compares with its teacher, or yields what is wrong with it."""
    if not work.folder.exists():
        yield f"{work.label}, {work.split}: nothing is stored; kdcore cache build stores it"
        return
    if said := _examined(Kept(work.folder)):
        yield said
    with progress(f"comparing {work.label} with its teacher"):
        found = work.compare(sample)
    facts = (
        f"{found.tokens:,} tokens beside the live teacher: off by {found.mean:.2g} on average and "
        f"by {found.largest:.2g} at most; {found.missing:,} more are missing"
    )
    if not found.tokens:
        yield f"{work.folder}: none of {found.missing:,} sampled tokens is stored"
    elif found.is_small:
        tell(Text(f"{work.folder}: {facts}"))
    else:
        yield f"{work.folder}: {facts}; rounding stays below {found.tolerance:g}"
