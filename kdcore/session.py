"""The Python interface: run, check, plan and load, equivalent to the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kdcore.api.component import Component, hookimpl
from kdcore.errors import RecipeError
from kdcore.terminal.libraries import without_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.analysis.plan import StagePlan
    from kdcore.api.hookspecs import Record
    from kdcore.api.run import Run
    from kdcore.plugin.manager import PluginManager

RecipeLike = str | Path | Mapping[str, Any]
"""The name of a shipped recipe, a path, or the recipe itself as nested mappings."""

Sets = Sequence[str] | Mapping[str, Any]
"""Changes to a recipe: `["train.lr=1e-4"]`, or `{"train.lr": 1e-4}`."""


@dataclass(frozen=True)
class Result:
    """A run's folder, and its results read from there."""

    folder: Path  # the last stage's folder
    stages: Sequence[Path] = ()  # every stage's folder, in the order they ran

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, all with the same keys; None where a line has no value."""
        from kdcore.runs.reading.metrics import METRICS, whole_lines

        lines = [line for _, line in whole_lines(self.folder / METRICS)]
        keys = dict.fromkeys(key for line in lines for key in line)
        return [{key: line.get(key) for key in keys} for line in lines]

    @property
    def scores(self) -> dict[str, Any]:
        """The last value of every score, by name without `eval/`."""
        found: dict[str, Any] = {}
        for line in self.metrics:
            found |= {
                key.removeprefix("eval/"): value
                for key, value in line.items()
                if key.startswith("eval/") and value is not None
            }
        return found

    @cached_property
    def model(self) -> PreTrainedModel:
        """The final student on the CPU, in evaluation mode and in the dtype it was saved in."""
        from transformers import AutoModelForCausalLM

        with without_bars():
            found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                self.folder / "final", dtype="auto"
            )
        return found

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The final student's tokenizer."""
        from kdcore.models.loading import load_tokenizer

        return load_tokenizer(str(self.folder / "final"))

    def open(self, *, step: int | None = None, plugins: Sequence[str] = ()) -> Run:
        """The run with its tokenizer, rows and weights, in evaluation mode; the teacher is loaded
        if an eval needs it.

        The weights are those of the checkpoint at `step`, by default the final ones, or the newest
        checkpoint of an unfinished run.
        """
        from kdcore.runs.open import begun, open_stage

        return open_stage(begun(self.folder, _host(plugins), step=step))


def run(
    recipe: RecipeLike,
    *,
    sets: Sets = (),
    on_record: Callable[[Record], None] | None = None,
    stage: str | None = None,
    out: str | Path = "runs",
    fresh: bool = False,
    accept: Sequence[str] = (),
    logs: Sequence[str] = (),
    plugins: Sequence[str] = (),
) -> Result:
    """Run a recipe as `kdcore run` does: finished stages are reused, an interrupted one resumes.

    `on_record` is called with each `Record`, every `train.log_every` steps. `plugins` takes the
    values of `-p`. Notebooks show a progress bar. Raises RecipeError with all errors of the recipe,
    RunError if a run fails.
    """
    import datasets  # noqa: F401  # before its bars are switched off

    from kdcore.runs.notebook import notebook_progress
    from kdcore.runs.runner import RunRequest, run_all

    host = _host(plugins)
    listeners = [*([_OnRecord(on_record)] if on_record else []), *notebook_progress()]
    with without_bars(), _name_of(recipe) as name, host.listening(listeners):
        asked = RunRequest(
            recipe=name,
            out=Path(out),
            sets=_arguments(sets),
            logs=tuple(logs),
            stage=stage,
            fresh=fresh,
            accept=frozenset(accept),
        )
        folders = run_all(asked, host)
    return Result(folders[-1], tuple(folders))


def check(recipe: RecipeLike, *, sets: Sets = (), plugins: Sequence[str] = ()) -> list[str]:
    """Raise RecipeError with all errors of a recipe, or return its notes. Loads nothing."""
    from kdcore.recipe.recipe import read_recipe

    with _name_of(recipe) as name:
        found = read_recipe(name, _host(plugins), sets=_arguments(sets))
        found.refuse_missing()
        return list(found.notes)


def plan(recipe: RecipeLike, *, sets: Sets = (), plugins: Sequence[str] = ()) -> list[StagePlan]:
    """The plan of each stage of a recipe, as `kdcore plan` shows it. Loads no weights."""
    from kdcore.analysis.plan import plans_of
    from kdcore.recipe.recipe import read_recipe

    with _name_of(recipe) as name:
        return list(plans_of(read_recipe(name, _host(plugins), sets=_arguments(sets))))


def load(run: str | Path, *, out: str | Path = "runs") -> Result:
    """Find a run by its path, its folder's name, a unique prefix of it, or "last"."""
    from kdcore.runs.folder import find_run

    folder = find_run(str(run), Path(out))
    return Result(folder, (folder,))


class _OnRecord(Component):
    """Passes each record to a function."""

    name = "on_record"
    component_kind = "callback"

    def __init__(self, function: Callable[[Record], None]) -> None:
        self._function = function

    @hookimpl
    def kdcore_log(self, run: Run, record: Record) -> None:
        self._function(record)


def _host(plugins: Sequence[str]) -> PluginManager:
    from kdcore.cli.main import plugin_manager

    found: PluginManager = plugin_manager(list(plugins))
    return found


def _arguments(sets: Sets) -> tuple[str, ...]:
    """The changes in the syntax of `--set`."""
    from kdcore.recipe.overrides import as_toml

    if not isinstance(sets, Mapping):
        return tuple(sets)
    return tuple(f"{key}={as_toml(value)}" for key, value in sets.items())


@contextmanager
def _name_of(recipe: RecipeLike) -> Iterator[str]:
    """The recipe as the command line takes it; a mapping is written to a temporary file."""
    if not isinstance(recipe, Mapping):
        yield str(recipe)
        return
    import tomli_w

    with TemporaryDirectory(prefix="kdcore-") as folder:
        path = Path(folder, f"{recipe.get('name', 'recipe')}.toml")
        path.write_text(tomli_w.dumps(recipe), "utf-8")
        try:
            yield str(path)
        except RecipeError as error:
            raise RecipeError([replace(each, file="recipe") for each in error.errors]) from None
