"""The command line: `run`, `check`, and all other commands through their entry points."""

from __future__ import annotations

import ast
import logging
import os
import signal
import sys
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from kdcore.cli.at_once import AtOnceSignals
from kdcore.cli.examples import as_epilog, epilog_of
from kdcore.errors import (
    Interrupted,
    KdcoreError,
    PluginError,
    ProcessLost,
    RunError,
    UsageError,
)
from kdcore.files import machine_error, refusal
from kdcore.redact import Redacted, redact_own_secrets

if TYPE_CHECKING:
    from kdcore.runs.runner import RunRequest


def first_sentence(verb: EntryPoint) -> str:
    """The first line of the function's docstring, or of its module's; "" if unreadable."""
    top, *inner = verb.module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return ""
    path = Path(spec.origin)
    if inner:
        path = path.parent.joinpath(*inner).with_suffix(".py")
    try:
        module = ast.parse(path.read_text())
    except (OSError, SyntaxError, ValueError):
        return ""
    functions = (n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == verb.attr)
    text = ast.get_docstring(next(functions, module)) or ""
    return text.split("\n")[0]


_WELCOME = """\
kdcore run quickstart        distil a small model in a few minutes, on any machine
kdcore recipes               what else there is to run
kdcore new recipe FROM [TO]  begin your own from one of them
kdcore new recipe --teacher MODEL --student MODEL|20M --data FILE
                             begin one for your own models and text
kdcore new plugin NAME       a package for your own loss, data, teacher, selection, ..."""

Plugins = Annotated[
    list[str] | None,
    typer.Option("-p", metavar="PLUGIN", help="no:NAME blocks a plugin, ./FILE.py adds one."),
]

Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="Change a key of the recipe.")
]

Logs = Annotated[
    list[str] | None, typer.Option("--log", metavar="NAME", help="Add a logger by name.")
]


class _Verbs(TyperGroup):
    """The commands of this file, and every entry point of the group `kdcore.commands`."""

    @cached_property
    def verbs(self) -> Mapping[str, EntryPoint]:
        """The entry points, by name."""
        from kdcore.plugin.discovery import commands

        return commands()

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(self.verbs)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        found = self.verbs.get(cmd_name)
        if own is not None or found is None:
            return own
        if "--help" in sys.argv[1:2] or ctx.resilient_parsing:
            return _listed(found)
        return loaded_verb(found)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if ctx.resilient_parsing and command is not None:  # a shell completes its arguments
            from kdcore.cli.completion import complete_arguments

            verb = self.verbs.get(args[0])
            command = loaded_verb(verb) if verb is not None else command
            complete_arguments(command, lambda: plugin_manager(None))
        return name, command, rest


app = typer.Typer(cls=_Verbs, invoke_without_command=True)


@app.callback()
def kdcore(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Knowledge distillation of causal language models with plugins and recipes."""
    if version:
        from importlib.metadata import version as version_of

        print(f"kdcore {version_of('kdcore')}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(_WELCOME)


@app.command(
    epilog=as_epilog(
        "kdcore run quickstart",
        "kdcore run quickstart --stage ce --each seed=0,1",
        "kdcore run mine.toml --set train.lr=1e-4 --log tracker",
    )
)
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a run.")],
    sets: Sets = None,
    each: Annotated[
        list[str] | None,
        typer.Option("--each", metavar="K=a,b", help="Run once for each value; several multiply."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Only this stage, and those that it needs.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes: one for each GPU.")] = 1,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start a new run next to the existing one.")
    ] = False,
    accept: Annotated[
        str, typer.Option(metavar="WHAT", help="Resume although this changed: data,versions,...")
    ] = "",
    logs: Logs = None,
    plugins: Plugins = None,
    quiet: Annotated[bool, typer.Option("-q", help="Print warnings and results only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the folders with their last scores as JSON.")
    ] = False,
) -> None:
    """Run a recipe, or resume a run. Standard output has each stage's folder, in order."""
    _tell(quiet)
    _join(processes)
    from kdcore.runs.runner import RunRequest

    asked = RunRequest(
        recipe=recipe,
        sets=tuple(sets or ()),
        each=tuple(each or ()),
        logs=tuple(logs or ()),
        stage=stage,
        out=out,
        fresh=fresh,
        accept=frozenset(filter(None, accept.split(","))),
    )
    _run(asked, plugins, as_json)


def _join(processes: int) -> None:
    """If several processes are requested, launch them and exit with them."""
    from kdcore.cli.launch import end_with_launcher, launch
    from kdcore.cli.launchers import join

    end_with_launcher()
    join(os.environ, processes)
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        raise SystemExit(launch(sys.argv[1:], processes))


def _run(asked: RunRequest, plugins: list[str] | None, as_json: bool) -> None:
    """Run it, and print finished stages even if the rest fails."""
    from dataclasses import replace

    from kdcore.cli.results import tell_results
    from kdcore.runs.runner import run_all

    folders: list[Path] = []
    try:
        run_all(replace(asked, on_finished=folders.append), plugin_manager(plugins))
    finally:
        if os.environ.get("RANK", "0") == "0":
            tell_results(folders, as_json=as_json)


@app.command(
    epilog=as_epilog("kdcore check quickstart rho_qwen", "kdcore check mine.toml --set train.lr=1")
)
def check(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...")],
    sets: Sets = None,
    logs: Logs = None,
    plugins: Plugins = None,
) -> None:
    """Find every error in recipes. Loads no model and no data."""
    _tell(quiet=False)
    from kdcore.recipe.recipe import read_recipe
    from kdcore.sweeps.points import SweepRequest, read_points

    host = plugin_manager(plugins)
    failed = 0
    for name in recipes:
        try:
            recipe = read_recipe(name, host, sets=sets or (), logs=logs or ())
            recipe.refuse_missing()
            if recipe.sweep is not None:
                read_points(SweepRequest(name, tuple(sets or ()), logs=tuple(logs or ())), host)
        except UsageError as error:
            failed += 1
            print(error, file=sys.stderr)
        else:
            for note in recipe.notes:
                print(note, file=sys.stderr)
            print(f"{name}: no errors")
    if failed:
        raise typer.Exit(UsageError.exit_code)


def plugin_manager(plugins: list[str] | None) -> Any:
    """The plugin host for `-p` and KDCORE_PLUGINS_OFF."""
    from kdcore.plugin.manager import PluginManager

    asked = plugins or []
    off = [name[3:] for name in asked if name.startswith("no:")]
    off += filter(None, map(str.strip, os.environ.get("KDCORE_PLUGINS_OFF", "").split(",")))
    return PluginManager(off=off, files=[name for name in asked if not name.startswith("no:")])


def main() -> None:
    """The console script. Always exits with one of the documented codes."""
    _open_closed()
    # All of this must precede library imports. 2 MB pages for large tensors on a CPU:
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # Rows of many lengths would fragment GPU memory. torch 2.8 knows the older name.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    for library in ("HF_DATASETS", "HF_HUB"):  # also for transformers; kdcore has its own progress
        os.environ[f"{library}_DISABLE_PROGRESS_BARS"] = "1"
    signals = AtOnceSignals()
    try:
        with signals:
            try:
                code = _exit_code()
            finally:
                _give_terminal_back()
                _leave_processes()
    except KeyboardInterrupt:
        code = _interrupted()
    if code and signals.interrupted:  # a library turned it into another error
        code = Interrupted("", signal.SIGINT).exit_code
    raise SystemExit(code)


def _open_closed() -> None:
    """Replace closed standard streams (2>&-) by the null device."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def _give_terminal_back() -> None:
    """Remove displays that an interrupt left on the terminal."""
    display = sys.modules.get("kdcore.terminal.display")
    if display is not None:
        display.give_back()


def _leave_processes() -> None:
    """Leave the process group; a process that stays in it may abort on exit."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _exit_code() -> int:
    try:
        return int(app(standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        return exit_code_of(error)


def exit_code_of(error: Exception) -> int:
    """Report an error and return its exit code."""
    if isinstance(error, KdcoreError):
        if isinstance(error, PluginError) and (refused := _refused(error)):
            return _said(refused, RunError.exit_code)
        return _said(error, _code_of(error))
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        error.show()  # type: ignore[attr-defined]
        return _mistyped(error)
    if type(error).__name__ == "Abort":
        return _interrupted()
    if refused := _refused(error):
        return _said(refused, RunError.exit_code)
    return _said(_as_bug(error), PluginError.exit_code)


def _mistyped(error: Any) -> int:
    from kdcore.cli.mistyped import meant

    if hint := meant(error):
        print(hint, file=sys.stderr)
    return int(error.exit_code)


def _code_of(error: KdcoreError) -> int:
    if isinstance(error, ProcessLost):
        from kdcore.cli.launch import code_of_lost

        return code_of_lost()
    return error.exit_code


def _interrupted() -> int:
    return _said("interrupted", Interrupted("", signal.SIGINT).exit_code)


def _refused(error: Exception) -> str | None:
    """Errors of the machine that are not bugs: a name too long, a read-only folder."""
    if problem := machine_error(error):
        return "; ".join(refusal(problem))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return None


def _said(message: object, code: int) -> int:
    _give_terminal_back()
    print(f"kdcore: {redact_own_secrets(str(message))}", file=sys.stderr)
    return code


def _as_bug(error: Exception) -> str:
    import traceback

    if os.environ.get("KDCORE_TRACE"):
        traceback.print_exception(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno}): a bug in "
        "kdcore or in a plugin; KDCORE_TRACE=1 shows where, and so does traceback.txt in a run"
    )


def _tell(quiet: bool) -> None:
    """Log messages to stderr, from the first process only."""
    log = logging.getLogger("kdcore")
    first = os.environ.get("RANK", "0") == "0"
    log.setLevel(logging.WARNING if quiet or not first else logging.INFO)
    if not log.filters:
        log.addFilter(Redacted())
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stderr))
    log.propagate = False


def loaded_verb(verb: EntryPoint) -> Any:
    """The click command of an entry point. Raises PluginError if it cannot be loaded."""
    try:
        found = verb.load()
    except Exception as error:
        raise PluginError(
            f"the verb {verb.name!r} cannot be loaded from {verb.value}: {error}"
        ) from error
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    alone = typer.Typer(add_completion=False)
    alone.command(name=verb.name, epilog=epilog_of(found))(found)
    return typer.main.get_command(alone)


def _listed(verb: EntryPoint) -> Any:
    """A placeholder in the command list: reads its help from the source without importing."""
    alone = typer.Typer(add_completion=False)
    alone.command(name=verb.name, help=first_sentence(verb))(lambda: None)
    return typer.main.get_command(alone)
