"""The checks of `kdcore doctor`: facts about a stage, and errors or oddities.

Uses configs, tokenizers and rows as a run does. Loads no weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from kdcore.analysis.parameters import parameters_of
from kdcore.analysis.rows import RowSample, opened_stages, sample_of
from kdcore.commands.checks.server_trial import Trial, is_elsewhere, try_out
from kdcore.data.encoding import own_beginning
from kdcore.errors import KdcoreError
from kdcore.models.loading import dtype_of, precision_of
from kdcore.models.locations import set_trusted
from kdcore.objective.teachers import check_positions, numbered, reading_our_ids
from kdcore.runs.folder import FINAL
from kdcore.training.setup import shared_ids
from kdcore.training.student import check_length, checked_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from kdcore.recipe.recipe import Recipe
    from kdcore.training.run_state import RunState

Degree = Literal["error", "warning", "note"]

_OUT = Path("runs")  # where `kdcore run` and `kdcore cache` keep theirs by default
_ROWS = 64  # sample for masks and ends
_MANY_CUT = 0.05  # of the documents
_FEW_TRAINED = 0.1  # of the tokens
_MOST_END = 0.9  # of the documents


@dataclass(frozen=True)
class Finding:
    """An error that would stop a run, or a warning about unintended training."""

    degree: Degree
    text: str


@dataclass(frozen=True)
class Model:
    """A student or teacher, by its config."""

    role: str
    name: str
    kind: str
    parameters: int | None
    dtype: str
    width: int  # rows of the head
    tied: bool
    reach: int | None


@dataclass(eq=False)
class Examined:
    """The results for one stage."""

    name: str
    models: list[Model] = field(default_factory=list)
    tokenizer: PreTrainedTokenizerBase | None = None
    ids: int | None = None  # shared by all models
    samples: list[RowSample] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)  # what a run logs about its rows
    first: list[int] = field(default_factory=list)  # the ids that documents begin with
    ended: tuple[int, int] = (0, 0)  # documents that end with a learned EOS, and their total
    findings: list[Finding] = field(default_factory=list)
    trial: Trial | None = None  # for a teacher behind a server

    def add(self, degree: Degree, text: str) -> None:
        """Add a finding, once."""
        if all(each.text != text for each in self.findings):
            self.findings.append(Finding(degree, text))


def examine(recipe: Recipe, only: str | None = None) -> Iterator[Examined]:
    """Examine each stage in order, or one; others only as far as it needs them."""
    with TemporaryDirectory(prefix="kdcore-doctor-") as folder:
        for run in opened_stages(recipe, Path(folder), only):
            set_trusted(run.recipe.trusted)
            yield _Examining(run, Path(folder)).done()


def is_stored(run: RunState) -> bool:
    """Whether a cached teacher's stores have everything: the run does not load what it wraps."""
    from kdcore_cached.building import works
    from kdcore_cached.teacher import CachedTeacher

    there = copy(run)
    there.folder = _OUT / run.folder.name  # next to whose runs the stores are
    return isinstance(run.teacher, CachedTeacher) and all(one.is_complete for one in works(there))


@dataclass(eq=False)
class _Examining:
    run: RunState
    place: Path  # stands for the outputs of other stages

    def __post_init__(self) -> None:
        self.said = Examined(self.run.recipe.run_name, tokenizer=self.run.tokenizer)

    def done(self) -> Examined:
        with self._hearing():
            config = self._try(lambda: checked_config(self.run.recipe.student, self.run.tokenizer))
            if config is not None:
                self._student(config)
            self._teachers(config)
            for split in ("train", "validation"):
                sample = self._try(partial(sample_of, self.run, [], split, _ROWS))
                if sample is not None:
                    self.said.samples.append(sample)
            self._teacher_elsewhere()
        self._of_tokenizer()
        self._of_sizes()
        if self.said.samples:
            self._of_rows(self.said.samples[0])
        return self.said

    def _student(self, config: PretrainedConfig) -> None:
        config.save_pretrained(self.run.folder / FINAL)
        options = self.run.recipe.student
        kept = dtype_of(options.dtype, self.run.device) if options.model else torch.float32
        precision = precision_of(self.run.recipe.train.precision, self.run.device).replace(
            "no", "fp32"
        )
        plain = kept == torch.float32 and precision == "fp32"
        dtype = "fp32" if plain else f"{_short(kept)}, trained in {precision}, fp32 masters"
        self.said.models.append(_model("student", options.model or "fresh", config, dtype))
        block = self.run.data.block
        self._try(lambda: check_length(SimpleNamespace(config=config), block))  # type: ignore[arg-type]

    def _teachers(self, config: PretrainedConfig | None) -> None:
        teachers = reading_our_ids(self.run.recipe.components())
        for role, teacher in numbered(teachers).items():
            found = self._try(partial(teacher.architecture, self.run.device))
            if found is not None:
                name = self._named(str(getattr(teacher, "model", teacher.name)))
                dtype = _short(found.dtype)
                self.said.models.append(_model(role, name, found, dtype))
        if teachers and config is not None:
            width = int(config.get_text_config().vocab_size)
            self.said.ids = self._try(lambda: shared_ids(self.run, teachers, width))
            block = self.run.data.block
            self._try(lambda: check_positions(teachers, self.run.device, block))

    def _teacher_elsewhere(self) -> None:
        """Send a few rows to a teacher behind a server, if everything else was found."""
        teacher, samples = self.run.teacher, self.said.samples
        if teacher is None or not is_elsewhere(teacher) or not samples or self.said.ids is None:
            return
        self.run.vocabulary, self.run.micro_batch = self.said.ids, 4
        try:
            self.said.trial = try_out(self.run, teacher, samples[0])
        except (KdcoreError, OSError) as error:
            stored = self._try(lambda: is_stored(self.run))
            more = f"; {_OUT}/caches has all that the run asks" if stored else ""
            self.said.add("note" if stored else "error", self._named(f"{error}{more}"))

    def _of_tokenizer(self) -> None:
        tokenizer, said = self.run.tokenizer, self.said
        if tokenizer.eos_token_id is None:
            said.add(
                "warning",
                "the tokenizer has no end-of-text token (eos): the student will never stop",
            )
        elif tokenizer.pad_token_id == tokenizer.eos_token_id:
            said.add("note", "pad is eos: harmless here, as padding is masked by position")

    def _of_sizes(self) -> None:
        student = next((each for each in self.said.models if each.role == "student"), None)
        if student is None:
            return
        ids = len(self.run.tokenizer)
        if student.width < ids:
            self.said.add("error", f"the student's head has {student.width:,} rows for {ids:,} ids")
        for other in self.said.models:
            if (other.parameters or math.inf) < (student.parameters or 0):
                self.said.add("note", f"the {other.role} is smaller than the student")

    def _of_rows(self, sample: RowSample) -> None:
        said = self.said
        if sample.cut > _MANY_CUT * sample.documents:
            said.add(
                "warning",
                f"{sample.cut / sample.documents:.1%} of the documents are longer than a row of "
                f"{sample.block} and cut: raise data.block",
            )
        if sample.dropped:
            said.add("note", f"{sample.dropped:,} documents have nothing to train on: left out")
        if trained_share(sample) < _FEW_TRAINED:
            said.add(
                "warning",
                f"{trained_share(sample):.1%} of the tokens are trained: the rest is prompts",
            )
        said.first = [int(n) for row in sample.rows for n in row.input_ids[row.offset == 0]]
        own = own_beginning(self.run.tokenizer)
        if own and said.first and own[0] not in said.first:
            said.add(
                "warning",
                f"no document begins with {self.run.tokenizer.decode(own)!r}, which the tokenizer "
                "adds to a text: a model that was trained with it predicts these worse",
            )
        said.ended = _ended(sample)
        ends, documents = said.ended
        if self.run.tokenizer.eos_token_id is None or ends >= _MOST_END * documents:
            return
        said.add(
            "warning",
            f"{documents - ends:,} of {documents:,} documents do not end with a learned end token: "
            "from these the student does not learn to stop; raise data.block where they are cut, "
            "or set data.eos = true or another template",
        )

    def _try(self, make: Callable[[], Any]) -> Any:
        """The result, or None and an error with the run's own message."""
        try:
            return make()
        except (KdcoreError, OSError) as error:
            self.said.add("error", self._named(str(error)))
            return None

    def _named(self, text: str) -> str:
        """Shows other stages by their names in the recipe."""
        return text.replace(f"{self.place}/", "").replace(f"/{FINAL}", "")

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Turns warnings of checks into findings, and keeps other messages."""
        log, heard = logging.getLogger("kdcore"), _Heard()
        before = log.handlers, log.propagate, log.level
        log.handlers, log.propagate = [heard], False
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.handlers, log.propagate = before[:2]
            log.setLevel(before[2])
        for record in heard.records:
            text = self._named(record.getMessage())
            if record.levelno >= logging.WARNING:
                self.said.add("warning", text)
            else:
                self.said.messages.append(text)


class _Heard(logging.Handler):
    """Keeps log messages."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.records.append(record)


def _model(role: str, name: str, config: PretrainedConfig, dtype: str) -> Model:
    text = config.get_text_config()
    tied = bool(getattr(text, "tie_word_embeddings", getattr(config, "tie_word_embeddings", True)))
    return Model(
        role=role,
        name=name,
        kind=config.model_type,
        parameters=_parameters(config),
        dtype=dtype,
        width=int(text.vocab_size),
        tied=tied,
        reach=getattr(text, "max_position_embeddings", None),
    )


def _parameters(config: PretrainedConfig) -> int | None:
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, ImportError, RuntimeError):  # remote code, or a quantised model
        return None
    return parameters_of(model)[0]


def _short(dtype: object) -> str:
    names: Mapping[object, str] = {
        torch.float32: "fp32",
        torch.bfloat16: "bf16",
        torch.float16: "fp16",
        None: "fp32",
    }
    return names.get(dtype, str(dtype).removeprefix("torch."))


def trained_share(sample: RowSample) -> float:
    """The trained share of tokens in the sampled rows."""
    tokens = sum(len(row.valid) for row in sample.rows)
    return sum(int(row.valid.sum()) for row in sample.rows) / max(1, tokens)


def _ended(sample: RowSample) -> tuple[int, int]:
    """Sampled documents whose last learned token ends a text or a turn, and all of them."""
    ends = _ends(sample.tokenizer)
    last: list[int] = []
    for row in sample.rows:
        for document in np.unique(row.document):
            learned = row.input_ids[(row.document == document) & row.valid]
            last += learned[-1:].tolist()
    return sum(each in ends for each in last), len(last)


def _ends(tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    added = [n for n, each in tokenizer.added_tokens_decoder.items() if each.special]
    eos = tokenizer.eos_token_id
    return [*added, *([eos] if isinstance(eos, int) else [])]
