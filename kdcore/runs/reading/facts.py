"""Facts about a run, one line each: models, data and objective, from a recipe's tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli

from kdcore.terminal.formatting import count

if TYPE_CHECKING:
    from kdcore.api.run import Run

Table = Mapping[str, Any]
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Facts:
    """The head of the panel. Empty texts are left out."""

    name: str
    student: str
    teacher: str
    objective: str
    tokens: str  # the tokens that are trained on
    batch: str  # what a step draws
    folder: Path
    in_epochs: bool = True  # whether the recipe gives the length in epochs

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of each non-empty fact."""
        labels = ("student", "teacher", "objective", "tokens", "batch")
        return [(label, getattr(self, label)) for label in labels if getattr(self, label)]


def facts_of_run(run: Run) -> Facts:
    """The facts of a running stage."""
    facts = _facts(run.recipe.table, run.recipe.run_name, run.folder)
    parameters = _parameters(run)
    return replace(
        facts,
        student=f"{facts.student}, {parameters}" if parameters else facts.student,
        objective=spelt(run.objective) or facts.objective,
        batch=_batch(run.recipe.table, run.documents_in_step),
    )


def facts_of_folder(folder: Path) -> Facts:
    """The facts of a run, from its folder alone."""
    table = read_settings(folder)
    return _facts(table, str(table.get("name") or folder.name.rpartition("-")[0]), folder)


def read_settings(folder: Path) -> Table:
    """The tables of one stage in resolved.toml; empty if it is missing or damaged."""
    try:
        return settings_in((folder / "resolved.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def settings_in(resolved: str) -> Table:
    """The tables of one stage in the text of a resolved.toml."""
    table = tomli.loads(resolved)
    # If the tokenizer has other data than the stage, the stage is a table of its own.
    [(stage, own)] = table.pop("stage").items() if "stage" in table else [("", {})]
    if not stage:
        return {"tokenizer_data": table.get("data", {}), **table} if "tokenizer" in table else table
    top = {"tokenizer_data": table.pop("data", {}), **table, "name": f"{table['name']}.{stage}"}
    return {**top, **own}


def flat(table: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Values by dotted key; lists of tables count from 1, as in `--set loss.1.weight=0.5`."""
    if isinstance(table, Mapping):
        for name, each in table.items():
            yield from flat(each, f"{key}.{name}" if key else name)
    elif isinstance(table, list) and any(isinstance(each, Mapping) for each in table):
        for number, each in enumerate(table, 1):
            yield from flat(each, f"{key}.{number}")
    else:
        yield key, table


def _facts(table: Table, name: str, folder: Path) -> Facts:
    return Facts(
        name=name,
        student=student(table.get("student", {})),
        teacher=component(table["teacher"]) if table.get("teacher") else "",
        objective=objective(table.get("loss", [])),
        tokens=component(table["selection"]) if table.get("selection") else "",
        batch=_batch(table, 0),
        folder=folder,
        in_epochs=bool(table.get("train", {}).get("epochs")),
    )


def _batch(table: Table, documents: float) -> str:
    """What a step draws, and the mean number of documents in it."""
    train = table.get("train", {})
    if "batch_documents" in train:
        return f"{train['batch_documents']:,} documents a step"
    if not round(documents):
        return ""
    return f"{train.get('batch', 8):,} rows a step, about {round(documents):,} documents"


def student(table: Table) -> str:
    """A student's model, or the shape of a fresh one, and its patches."""
    config = table.get("config")
    said = _shape(config) if config else _model(str(table.get("model", "?")))
    patches = [str(patch.get("use", "")) for patch in table.get("patch", [])]
    return " + ".join([said, *patches])


def _model(name: str) -> str:
    """A model's name; for the final weights of another run, that run's."""
    path = Path(name)
    return path.parent.name if path.name == "final" and path.parent.name else name


def _shape(config: Table) -> str:
    width = next((config[key] for key in _WIDTHS if key in config), None)
    layers = next((config[key] for key in _LAYERS if key in config), None)
    kind = str(config.get("model_type", "fresh model"))
    return f"{kind} {width} x {layers}" if width and layers else kind


def component(table: Table) -> str:
    """A component with nested ones: "Qwen/Qwen2.5-1.5B", "rho(keep 0.3, ...)"."""
    nested = [component(part) for value in table.values() for part in _tables(value)]
    if isinstance(table.get("model"), str) and not nested:
        return _model(table["model"])
    numbers = [f"{key} {value:g}" for key, value in table.items() if _is_number(value)]
    inside = ", ".join([*numbers, *nested])
    return f"{table.get('use', '?')}({inside})" if inside else str(table.get("use", "?"))


def _tables(value: object) -> list[Table]:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [part for part in values if isinstance(part, Mapping) and "use" in part]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def objective(losses: Sequence[Table]) -> str:
    """The sum of the terms, if only the recipe is known: "0.5 ce + 0.5 kl"."""
    return " + ".join(_term(loss) for loss in losses)


def _term(loss: Table) -> str:
    weight = loss.get("weight", 1.0)
    options = {key: value for key, value in loss.items() if key not in ("weight", "on")}
    said = component(options)
    return said if weight == 1 else f"{weight:g} {said}" if _is_number(weight) else f"w {said}"


def spelt(formula: str) -> str:
    """The right-hand side of the objective's formula, one term per line."""
    lines = [line.strip() for line in formula.removeprefix("loss = ").splitlines()]
    return "\n".join(lines)


def _parameters(run: Run) -> str:
    try:
        return f"{count(run.student.num_parameters())} parameters"
    except AttributeError:  # not a transformers model
        return ""
