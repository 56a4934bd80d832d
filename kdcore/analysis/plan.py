"""The plan of a recipe, stage by stage, without loading weights or downloading data.

Makes a stage's tokenizer and rows as a run does, in a temporary folder. Whatever cannot be known
here is listed with the reason; everything else is still reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from kdcore.analysis.memory import Estimate, estimate, estimate_processes
from kdcore.analysis.processes import ProcessMemory
from kdcore.api.data import Data
from kdcore.api.options import describe
from kdcore.api.teacher import Teacher
from kdcore.data.batch import Rows
from kdcore.data.encoding import bos_of
from kdcore.errors import KdcoreError
from kdcore.guard import call_checked
from kdcore.models.locations import without_downloads
from kdcore.recipe.describe import objective_formula, symbols_of
from kdcore.runs.open import OpenRequest, open_stage
from kdcore.training.run_state import RunState
from kdcore.training.setup import steps_of
from kdcore.training.student import checked_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from kdcore.api.run import Stage
    from kdcore.api.train_options import TrainOptions
    from kdcore.data.rows import RowDataset
    from kdcore.recipe.recipe import Recipe, StageTable


_LOOKED_AT = 8  # sample rows
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage. None: unknown."""

    stage: Stage  # as written: other stages are "@NAME"
    components: Mapping[str, str]  # "data", "teacher", ... -> as a call, without defaults
    objective: str
    symbols: Sequence[tuple[str, str]]  # of the objective, with their meaning
    ids: int | None  # size of the tokenizer
    documents: int | None  # documents in the training data
    rows: int | None
    tokens: int | None  # tokens in the rows
    steps: int | None
    estimate: Estimate | None
    bytes_per_token: float  # stored by teachers, on disk
    unknown: Sequence[str]  # what is not known, and why
    bos: str = ""  # what begins each document
    held_out: int | None = None  # rows of an evaluation
    processes: Sequence[ProcessMemory] = ()  # on several GPUs, if requested

    @property
    def in_epoch(self) -> int | None:
        """The rows of an epoch, or its documents where steps draw these."""
        return self.documents if self.stage.train.batch_documents else self.rows


def plans_of(recipe: Recipe, gpus: Sequence[int] = ()) -> Iterator[StagePlan]:
    """A plan for each stage, in the order in which they run; for so many GPUs, if given."""
    with TemporaryDirectory(prefix="kdcore-plan-") as folder:
        known: list[Path] = []
        for table in recipe.stages:
            yield _Planning(recipe, table, Path(folder), known, gpus).plan()


@dataclass(eq=False)
class _Planning:
    """One stage. `place` stands for the outputs of other stages, without weights."""

    recipe: Recipe
    table: StageTable
    place: Path
    known: list[Path]  # the folders of earlier stages
    gpus: Sequence[int] = ()
    unknown: list[str] = field(default_factory=list)
    bos: str = ""
    held_out: int | None = None

    def plan(self) -> StagePlan:
        stage = self._stage()
        run = self._try("the tokenizer", lambda: self._open(stage))
        tokenizer = run.tokenizer if run is not None else None
        if run is None:
            why = self.unknown[-1].partition(": ")[2]
            hang_on_it = ["rows and tokens", *(["the student"] if stage.student.config else [])]
            self.unknown += [f"{what}: {why}" for what in hang_on_it]
        rows = self._try("rows and tokens", lambda: run.laid("train")) if run else None
        if tokenizer is not None and rows:
            begins = self._try("how documents begin", lambda: _bos(stage.data, tokenizer, rows))
            self.bos = begins or ""
        if run is not None and rows:
            with suppress(KdcoreError, OSError):  # problems are reported for the training rows
                self.held_out = len(run.rows("validation"))
        config = None
        if tokenizer is not None or stage.student.config is None:
            config = self._try("the student", lambda: checked_config(stage.student, tokenizer))
        if config is not None and tokenizer is not None:
            self._keep(config, tokenizer)
        ids = len(tokenizer) if tokenizer else None
        longest = int(rows.lengths.max()) if rows else None
        some = _rows_in_step(stage.train, rows) if rows else None
        known: Any = {"ids": ids, "longest": longest, "rows": some}
        taken = config and self._try("memory", lambda: estimate(stage, config, **known))
        self.unknown += [self._said(why) for why in taken.unknown] if taken else []
        steps = self._steps(stage.train, run, rows)
        found = self._stage_plan(ids, rows, taken or None, steps)
        if config is None or not taken or not self.gpus:
            return found
        each = self._try(
            "memory of several GPUs", lambda: estimate_processes(stage, config, self.gpus, **known)
        )
        return replace(found, processes=each or ())

    def _stage_plan(
        self, ids: int | None, rows: RowDataset | None, taken: Estimate | None, steps: int | None
    ) -> StagePlan:
        typed = self.recipe.build(self.table.name)
        selects = typed.selection is not None
        return StagePlan(
            stage=typed,
            components=_as_calls(typed),
            objective=objective_formula(typed.terms, selects=selects, teacher=typed.teacher),
            symbols=symbols_of(typed.terms, selects=selects, teacher=typed.teacher),
            ids=ids,
            bos=self.bos,
            held_out=self.held_out,
            documents=len(rows.split.lengths) if rows else None,
            rows=len(rows) if rows else None,
            tokens=int(rows.lengths.sum()) if rows else None,
            steps=steps,
            estimate=taken,
            bytes_per_token=sum(
                call_checked(t, "bytes_per_token", of=(int, float))
                for t in typed.components()
                if isinstance(t, Teacher)
            ),
            unknown=self.unknown,
        )

    def _steps(
        self, options: TrainOptions, run: RunState | None, rows: RowDataset | None
    ) -> int | None:
        if run is None or rows is None:
            return options.steps
        return self._try("steps", lambda: steps_of(options, run.drawn_in_epoch(), rows.lengths))

    def _stage(self) -> Stage:
        finals = {name: self._folder(name) / "final" for name in self.table.needs}
        stage = self.recipe.build(self.table.name, finals)
        return replace(
            stage, data=_as_it_lies(stage.data), tokenizer_data=_as_it_lies(stage.tokenizer_data)
        )

    def _folder(self, name: str) -> Path:
        return self.place / f"@{name}"

    def _open(self, stage: Stage) -> RunState:
        folder = self._folder(self.table.name)
        folder.mkdir()
        request = OpenRequest(stage, folder, trusted=stage.trusted, others=list(self.known))
        run = open_stage(request, upto="tokenizer")
        self.known.append(folder)
        return run

    def _keep(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        final = self._folder(self.table.name) / "final"
        config.save_pretrained(final)
        tokenizer.save_pretrained(final)

    def _try(self, what: str, make: Callable[[], _Made]) -> _Made | None:
        try:
            return make()
        except (KdcoreError, OSError) as error:
            self.unknown.append(f"{what}: {self._said(str(error))}")
            return None

    def _said(self, text: str) -> str:
        """Shows other stages by their names in the recipe."""
        for name in self.table.needs:
            text = text.replace(str(self._folder(name) / "final"), f"@{name}")
        return text


def _rows_in_step(options: TrainOptions, rows: RowDataset) -> int:
    """The rows of a step; approximate where steps draw documents."""
    if options.batch_documents is None:
        return options.batch
    return math.ceil(options.batch_documents * len(rows) / len(rows.split.lengths))


def _bos(data: Data, tokenizer: PreTrainedTokenizerBase, rows: RowDataset) -> str:
    """What begins each document; a chat template may override it."""
    bos = bos_of(data, tokenizer)
    some = rows.some(range(min(len(rows), _LOOKED_AT)))
    first = [row["input_ids"][row["offset"] == 0] for row in some]
    begins = bos and all((ids == bos[0]).all() for ids in first)
    return str(tokenizer.decode(bos)) if begins else ""


def _as_calls(stage: Stage) -> dict[str, str]:
    student = [_student_of(stage), *map(describe, stage.student.patches)]
    kinds = ("tokenizer", "data", "teacher", "selection", "rollout")
    found = {kind: getattr(stage, kind) for kind in kinds}
    said = {kind: describe(one) for kind, one in found.items() if one is not None}
    return {"student": " + ".join(student), **said}


def _student_of(stage: Stage) -> str:
    if stage.student.config is None:
        return str(stage.student.model)
    options = dict(stage.student.config)
    kind = options.pop("model_type")
    return f"{kind}({', '.join(f'{key}={value!r}' for key, value in options.items())}), fresh"


def _as_it_lies(data: Data) -> Data:
    """The same data, without anything that needs a download."""

    def texts(split: str) -> Iterator[str]:
        with without_downloads():
            yield from data.texts(split)

    def make_rows(*arguments: Any, **options: Any) -> Rows:
        with without_downloads():
            return data.make_rows(*arguments, **options)

    same = copy(data)
    same.texts = texts  # type: ignore[method-assign]
    same.make_rows = make_rows  # type: ignore[method-assign]
    return same
