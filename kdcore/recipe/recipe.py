"""Recipes: read, merged and checked as a whole; identities, stages and resolved texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.api.run import Stage
from kdcore.errors import Diagnostic, RecipeError, UsageError
from kdcore.plugin.loading import check_requirements
from kdcore.recipe.assemble import assemble
from kdcore.recipe.describe import resolved
from kdcore.recipe.elsewhere import without_elsewhere
from kdcore.recipe.files import MergedRecipe, find_recipe, read_files
from kdcore.recipe.merge import (
    NONE,
    identity,
    in_order,
    merge_recipes,
    replace_references,
    without_none,
)
from kdcore.recipe.node import AT_TOP, Node, stages_of
from kdcore.recipe.overrides import Overrides, Sets, add_to_list

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager


NAME = re.compile(r"\w[\w.-]{0,79}")  # becomes part of a folder's name


@dataclass(frozen=True, eq=False)
class StageTable:
    """A stage's own table and what it inherits."""

    name: str  # "" for a recipe without stages
    needs: tuple[str, ...]  # stages that it refers to
    written: Node
    tokenizer_data: Node | None  # if the tokenizer is trained on other data than the stage

    @property
    def table(self) -> dict[str, object]:
        """The merged table as written."""
        return self.written.plain_table()


@dataclass(frozen=True, eq=False)
class Recipe:
    """A recipe without errors."""

    name: str
    path: Path
    text: str  # as typed; with `extends` or `--set`, the merged recipe
    notes: Sequence[str]  # for the user, on how it was read
    stages: Sequence[StageTable]  # in the order in which they run
    requires: Sequence[str]
    host: PluginManager
    missing: Mapping[str, Sequence[Diagnostic]] = field(default_factory=dict)  # files, by stage
    sweep: Node | None = None  # `[sweep]` as written, for `kdcore sweep`
    checked: dict[str, Stage] = field(default_factory=dict)  # by name, each until it is taken

    def refuse_missing(self) -> None:
        """Raise RecipeError with all missing files and folders of components."""
        if found := [each for stage in self.missing.values() for each in stage]:
            raise RecipeError(_in_reading_order(found))

    def build(self, stage: str = "", references: Mapping[str, Path] | None = None) -> Stage:
        """A new Stage, with the folders of other stages in place of `"@NAME"`.

        Without such references, the first call returns the stage that was checked.
        """
        found = self._stage(stage)
        table, data = found.written, found.tokenizer_data
        if references and (found.needs or data):
            paths = {name: str(path) for name, path in references.items()}
            table = replace_references(table, lambda name: paths[name])
            data = data and replace_references(data, lambda name: paths[name])
        elif stage in self.checked:
            return replace(self.checked.pop(stage), run_name=self.run_name(stage))
        built, errors, _ = assemble(table, (stage, self.run_name(stage)), data, self.host)
        if built is None:
            raise RecipeError([*errors])
        return built

    def identity(self, stage: str = "") -> str:
        """Eight hexadecimal digits that change with anything that can change the stage's result."""
        found = self._stage(stage)
        counted = without_elsewhere(found.written, self.host)
        return identity(counted, found.tokenizer_data, self.identity)

    def resolved(self, stage: Stage) -> str:
        """TOML with every default of a built stage, which reproduces it."""
        return resolved(stage, self.name, self.requires)

    def _stage(self, name: str) -> StageTable:
        return next(stage for stage in self.stages if stage.name == name)

    def run_name(self, stage: str) -> str:
        """The prefix of a stage's run folders."""
        return f"{self.name}.{stage}" if stage else self.name


def read_recipe(
    name: str,
    host: PluginManager,
    *,
    sets: Sets = (),
    logs: Sequence[str] = (),
    evals: Sequence[str] = (),
    only: str | None = None,
) -> Recipe:
    """Read the recipe of a path or shipped name, with changes from the command line.

    `logs` and `evals` are names to add to its lists with default options. `only` is the stage that
    will be built, "" the last one: errors in others are ignored.

    Raises RecipeError with all errors; loads nothing.
    """
    path = find_recipe(name)
    is_elsewhere = path != Path(name) and Path(name).suffix == ".toml"
    notes = [f"{name} is not here: {path} is used"] if is_elsewhere else []
    typed = read_files(path, name if path == Path(name) else str(path))
    errors: list[Diagnostic] = []
    for name_of_eval in evals:
        add_to_list(typed.root, "eval", name_of_eval, "--use")
    Overrides(typed.root, host, errors, notes).apply(sets)
    for logger in logs:
        add_to_list(typed.root, "log", logger, "--log")
    sweep = typed.root.table.pop("sweep", None)
    recipe_name = _name(typed.root, path.stem, errors)
    requires = _requires(typed, errors)
    text = _text(typed, recipe_name, changed=bool(sets or logs or evals or sweep))
    stages, missing = _stages(typed.root, errors), dict[str, Sequence[Diagnostic]]()
    checked: dict[str, Stage] = {}
    for stage in stages if only is None else _only(only, stages):
        built, found, absent = assemble(stage.written, (stage.name, ""), stage.tokenizer_data, host)
        if built is not None:
            checked[stage.name] = built
        errors += found
        missing[stage.name] = [*absent]
    if errors:
        raise RecipeError(_in_reading_order(errors))
    return Recipe(recipe_name, path, text, notes, stages, requires, host, missing, sweep, checked)


def _only(name: str, stages: Sequence[StageTable]) -> Sequence[StageTable]:
    return [stage for stage in stages if stage.name == name] or stages[-1:]


def _in_reading_order(errors: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Each error once, by file; stages share errors of the top level."""
    files = [problem.file for problem in errors]
    return sorted(dict.fromkeys(errors), key=lambda f: (files.index(f.file), f.line, f.column))


def _name(root: Node, stem: str, errors: list[Diagnostic]) -> str:
    written = root.table.get("name")
    name = stem if written is None else written.plain()
    if not isinstance(name, str) or not NAME.fullmatch(name):
        said = f"{name!r} cannot be part of a folder's name"
        hint = 'give a name of letters, digits, ".", "_" and "-": name = "my_recipe"'
        errors.append((written or root).error(said, hint))
    return str(name)


def _requires(typed: MergedRecipe, errors: list[Diagnostic]) -> list[str]:
    texts = []
    for written in typed.requires:
        text = written.plain()
        if isinstance(text, str):
            texts.append(text)
            errors += [written.error(message) for message in check_requirements([text])]
        else:
            errors.append(written.error('requires should name distributions: ["kdcore>=0.1"]'))
    return texts


def _text(typed: MergedRecipe, name: str, *, changed: bool) -> str:
    """A text with the same meaning in any folder: under its name, without `extends`."""
    if typed.alone and not changed:
        named = "name" in typed.root.table
        return typed.text if named else f'name = "{name}"\n{typed.text}'
    import tomli_w

    requires = {"requires": [each.plain() for each in typed.requires]} if typed.requires else {}
    return tomli_w.dumps({"name": name, **requires, **typed.root.plain_table()})


def _stages(root: Node, errors: list[Diagnostic]) -> list[StageTable]:
    """The stages merged over the top level; without stages, the top level itself."""
    top = root.with_children({key: v for key, v in root.table.items() if key not in AT_TOP})
    if "stage" not in root.table:
        table = without_none(top)
        in_order({"": table}, errors)
        return [StageTable("", (), table, None)]
    own = {name: stage for name, stage in stages_of(root).items() if stage.use != NONE}
    errors += _stage_errors(root.table["stage"])
    merged = {n: without_none(merge_recipes(top, own[n])) for n in own if own[n].is_table}
    order = in_order(merged, errors)
    data = _data_of_tokenizer(without_none(top), [merged[name] for name, _ in order])
    return [
        StageTable(name, tuple(needs), merged[name], _other_data(merged[name], own[name], data))
        for name, needs in order
    ]


def _stage_errors(stages: Node) -> list[Diagnostic]:
    if not stages.table:
        return [stages.error("stage holds no stages", "write [stage.NAME.train] and so on")]
    errors = []
    for name, stage in stages.table.items():
        if not stage.is_table:
            hint = f"write [stage.{name}.train] and so on"
            errors.append(stage.error(f"stage.{name} should be a stage, a table of tables", hint))
        elif not NAME.fullmatch(name):
            hint = 'use letters, digits, ".", "_" and "-"'
            errors.append(stage.error(f"{name!r} cannot be part of a folder's name", hint))
    return errors


def _data_of_tokenizer(top: Node, stages: Sequence[Node]) -> Node | None:
    """The data of a top-level tokenizer: that of the top level, else that of the first stage."""
    if "tokenizer" not in top.table:
        return None
    data = [table.table["data"] for table in (top, *stages) if "data" in table.table]
    return data[0] if data else None


def _other_data(merged: Node, own: Node, data: Node | None) -> Node | None:
    """The data of the top level's tokenizer, if the stage uses it and has other data."""
    if data is None or "tokenizer" in own.table or "data" not in merged.table:
        return None
    return None if data.plain() == merged.table["data"].plain() else data


def wanted_stages(recipe: Recipe, only: str | None) -> list[str]:
    """The stages to run, in order: all, or one with those it needs."""
    by_name = {stage.name: stage for stage in recipe.stages}
    if only is None:
        return list(by_name)
    if only not in by_name:
        there = ", ".join(by_name) or "it has none"
        raise UsageError(f"recipe {recipe.name!r} has no stage {only!r}: {there}")
    wanted, asked = set(), [only]
    while asked:
        wanted.add(name := asked.pop())
        asked += by_name[name].needs
    return [name for name in by_name if name in wanted]
