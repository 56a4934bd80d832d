"""`kdcore sweep`: all runs of a recipe's [sweep], on the machines of an executor."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcore.api.jobs import Executor
from kdcore.api.options import members, option_types
from kdcore.cli.examples import examples
from kdcore.cli.main import Logs, Sets, plugin_manager
from kdcore.commands.output import AsJson, Plugins, print_json, tell
from kdcore.errors import Diagnostic, RecipeError, UsageError
from kdcore.recipe.build import Builder
from kdcore.recipe.node import Node, Source
from kdcore.recipe.overrides import NoSuchPlaceError, parse_value
from kdcore.runs.lock import alone_in, owner_of
from kdcore.sweeps.coordinator import Coordinator
from kdcore.sweeps.graph import Task, node_of, tasks_of
from kdcore.sweeps.points import Points, SweepRequest, read_points
from kdcore.sweeps.store import RECORD, Store
from kdcore.sweeps.table import SweepTable

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager


@examples(
    "kdcore sweep mine.toml",
    "kdcore sweep quickstart --each seed=0,1,2 --on local:2",
    "kdcore sweep mine.toml --on slurm --slurm partition=gpu --slurm time=4:00:00",
    "kdcore sweep mine.toml --dry-run --json",
)
def sweep(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe with a sweep.")],
    sets: Sets = None,
    each: Annotated[
        list[str] | None,
        typer.Option("--each", metavar="K=a,b", help="Vary a key; several multiply."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Only this stage, and those that it needs.")
    ] = None,
    on: Annotated[
        str, typer.Option("--on", metavar="EXECUTOR", help="local:N, gpus, slurm or a plugin's.")
    ] = "local:1",
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", metavar="K=V", help="An option of the table sweep.slurm."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would run, and start nothing.")
    ] = False,
    as_json: AsJson = False,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a run that fails is tried again.")
    ] = 2,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End the jobs of this sweep, with checkpoints.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    logs: Logs = None,
    plugins: Plugins = None,
) -> None:
    """Run every combination of a recipe's sweep. Rerun the same command to resume."""
    host = plugin_manager(plugins)
    asked = SweepRequest(recipe, tuple(sets or ()), tuple(each or ()), tuple(logs or ()), stage)
    points = read_points(asked, host)
    executor = _executor(on, points, slurm or (), host)
    tasks = tasks_of(points.all)
    for note in points.notes:
        print(note, file=sys.stderr)
    if dry_run:
        _tell_plan(points, tasks, out, recipe, as_json=as_json)
        return
    store = Store(out, points.all[0].recipe.name, host)
    if cancel:
        _cancel(store, executor)
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    _run(Coordinator(tasks, store, executor, retries, tuple(plugins or ())), recipe)
    _tell_runs([store.run_of(task) for task in tasks.values()], store, as_json=as_json)


def _tell_runs(runs: Sequence[Path | None], store: Store, *, as_json: bool) -> None:
    names = [str(run) for run in dict.fromkeys(runs)]
    if as_json:
        print_json({"record": str(store.out / RECORD), "runs": names})
    else:
        print("\n".join(names))


def _run(coordinator: Coordinator, recipe: str) -> None:
    table, store = SweepTable(), coordinator.store
    coordinator.show = table.show
    with alone_in(store.folder, lambda said: print(f"{said}: waiting for it", file=sys.stderr)):
        try:
            coordinator.run()
        finally:
            table.close()
            store.record(recipe, [*coordinator.tasks.values()])


def _tell_plan(
    points: Points, tasks: Mapping[str, Task], out: Path, recipe: str, *, as_json: bool
) -> None:
    """What would run, in a possible order."""
    nodes = [node_of(task, out, recipe) for task in tasks.values()]
    if as_json:
        print_json({"recipe": recipe, "points": len(points.all), "nodes": nodes})
        return
    for node, task in zip(nodes, tasks.values(), strict=True):
        needs = f"  needs {', '.join(task.needs)}" if task.needs else ""
        state = "  finished" if node["finished"] else ""
        tell(f"{task.name}  {task.point.label}{needs}{state}")
    tell(f"{_counted(len(points.all), 'point')}, {_counted(len(tasks), 'run')}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _executor(on: str, points: Points, slurm: Sequence[str], host: PluginManager) -> Executor:
    """The executor of `--on NAME[:VALUE]`, with options from the recipe and the command line."""
    name, colon, argument = on.partition(":")
    provided = host.provided("executor")
    if name not in provided:
        raise UsageError(f"--on {on}: {host.why_missing('executor', name)}")
    cls = provided[name].cls
    if colon and not argument:
        raise UsageError(f"--on {on}: nothing follows the colon; leave it out for the default")
    table = points.options.get(name, Node.of({}, Source(f"--on {on}"))).copy()
    if argument:
        option = getattr(cls, "argument", "")
        if not option:
            raise UsageError(f"--on {on}: {name!r} takes no argument after a colon")
        _put(table, option, argument, Source(f"--on {on}"), cls)
    for each in slurm:
        key, equals, value = each.partition("=")
        if not equals or name != "slurm":
            way = "write K=V" if not equals else "it needs --on slurm"
            raise UsageError(f"--slurm {each}: {way}")
        _put(table, key.strip(), value, Source(f"--slurm {each}"), cls)
    errors: list[Diagnostic] = []
    table.table["use"] = Node.of(name, table.source)
    made = Builder(host, errors).component("executor", table)
    if errors or not isinstance(made, Executor):
        raise RecipeError(errors)
    return made


def _put(table: Node, key: str, text: str, source: Source, cls: type) -> None:
    """Set an option from the command line; text options take the input verbatim."""
    kinds = members(option_types(cls).get(key))
    try:
        value = text if str in kinds else parse_value(text)
    except NoSuchPlaceError as error:
        raise UsageError(f"{source.name}: {error.message}") from None
    table.table[key] = Node.of(value, source)


def _cancel(store: Store, executor: Executor) -> None:
    """Terminate the command that runs the sweep, if any, and cancel submitted jobs."""
    handles = store.jobs_of(executor.name)
    owner = owner_of(store.folder) if store.folder.is_dir() else None
    if owner is None and not handles:
        raise UsageError(f"no sweep of {store.folder.name} is running in {store.out}")
    if owner is not None:
        owner.end()
        print(f"{owner} ends", file=sys.stderr)
    if executor.outlives:
        executor.cancel([*handles.values()])
        store.keep_jobs(executor.name, {})
        are = "is" if len(handles) == 1 else "are"
        print(f"{_counted(len(handles), 'submitted job')} {are} cancelled", file=sys.stderr)
