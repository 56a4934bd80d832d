"""The teacher `precomputed`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from tempfile import TemporaryFile
from typing import IO, Annotated, Literal

import numpy as np
import torch
from kdcore_text.paths import absent, is_here
from kdcore_text.record import Record
from kdcore_text.records import Records as Reader
from kdcore_text.sources import Several, content, source
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    GappedLogits,
    Run,
    RunError,
    Split,
    Stage,
    Teacher,
    TeacherOutputs,
    component,
    progress,
)
from kdcore_precomputed.matching import Match, Records, by_key, match
from kdcore_precomputed.packed import Packing, description
from kdcore_precomputed.positions import Columns, is_id

_Value = bool | int | str | list[int | str] | list[dict[str, int | str]]


@component
class Precomputed(Teacher):
    """The likeliest ids of each token of the documents, as written by another program.

    Reads JSON lines or parquet files, folders of these, and data sets on the hub. Each record
    belongs to a document and has, for each of its tokens, a list of ids and one of
    log-probabilities (natural logarithm, temperature 1). Without `ids`, `log_probs` holds both, as
    in axolotl's KD data sets (`[{"token": "token_id:7", "logprob": -0.1}, ...]`) and vLLM's
    `prompt_logprobs`. `null`, an empty list and -inf mean unknown. DistillKit's packed columns
    (`compressed_logprobs` and `bytepacked_indices`) are unpacked, as the compression_config.yaml
    next to the files or `compression` says.

    Records are matched to the training documents by order, or by the column `key`, which [data] has
    to keep too (`keep_columns`). Lengths must match, and so must the records' own ids if `tokens`
    names their column. With `tail`, the remaining mass belongs to all other ids; without, the
    masses are normalised to 1.
    """

    name = "precomputed"
    path: str | list[str]
    log_probs: Annotated[str, Field(description="column of the log-probabilities")] = "log_probs"
    ids: Annotated[
        str | None, Field(description="column of their ids; by default log_probs holds both")
    ] = None
    tokens: Annotated[
        str | None, Field(description="column of the record's own ids, to prove that they fit")
    ] = None
    key: Annotated[
        str | None, Field(description="column that names a document's record; by default the order")
    ] = None
    position: Annotated[
        Literal["own", "next"],
        Field(description="which token an entry is of: its own, or the one behind it"),
    ] = "own"
    part: Annotated[bool, Field(description="records may cover the last tokens only")] = False
    tail: Annotated[bool, Field(description="whether other ids have the mass that is left")] = True
    k: Annotated[int | None, Field(ge=1, description="ids; by default the first record's")] = None
    compression: Annotated[
        dict[str, _Value] | None,
        Field(description="of DistillKit's columns; by default its file next to the records"),
    ] = None
    split: str = "train"

    def __post_init__(self) -> None:
        self._columns = Columns(self.log_probs, self.ids, self.tail, lambda: self._packing)
        self._matched: dict[str, Match] = {}

    def missing(self) -> Iterator[str]:
        """Paths that do not exist."""
        yield from filter(None, map(absent, self._paths))

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject data for which no distributions can have been written."""
        if recipe.rollout is not None:
            yield (
                "the teacher 'precomputed' knows only the data's documents, but with [rollout] it "
                "has to read new text: use a teacher that runs"
            )
        if recipe.data.streams:
            yield (
                f"data {recipe.data.name!r} is streamed, but records are matched with the whole "
                "data"
            )
        if self.k is None and not self._is_here and not any(self.missing()):
            yield f"the number of ids in {self._place} is unknown until the file exists: set k"
        if self.key is None and any(each.needs_teacher for each in recipe.evals):
            yield (
                "matched by order, records are of training documents, but an eval needs the "
                "teacher on others: match them by `key`, or leave the eval out"
            )

    def reads_columns(self) -> Sequence[dict[str, list[str]]]:
        """The column that identifies a document's record."""
        return [] if self.key is None else [{self.key: []}]

    def ids_known(self) -> int | None:
        """As many as the first non-empty record has."""
        return self.k or self._first_k

    def knows_others_at(self, temperature: float) -> bool:
        """At 1 only: files do not have the mass of the others at another temperature."""
        return temperature == 1

    def fingerprint(self) -> str:
        """The options, and the content of local files and of what describes their packing."""
        packing = "" if self.compression is not None else description(self._paths)
        return f"{super().fingerprint()} {content(self._paths)}{packing}"

    def load(self, run: Run) -> None:
        """Read and check every record, and match records to documents."""
        self._run = run
        self._records, self._named = self._read(run)
        if (laid := run.laid("train")) is not None:
            self._match(laid.split)

    def known(self, batch: Batch) -> Tensor:
        """The valid tokens that the records cover, bool [valid]."""
        entries = self._entries(batch)
        there = (entries >= 0) & (self._records.ids[np.maximum(entries, 0), 0] >= 0)
        return torch.from_numpy(there).to(batch.valid.device)

    def read(self, batch: Batch) -> TeacherOutputs:
        """The records' distributions for the tokens that valid positions predict."""
        entries, device = self._entries(batch), batch.valid.device
        some, k = np.maximum(entries, 0), self._records.ids.shape[1]
        ids = np.where((entries >= 0)[:, None], self._records.ids[some], -1)
        nothing = np.append(np.full(k, -100.0, np.float32), np.float32(0))
        logs = np.where((entries >= 0)[:, None], self._records.logs[some], nothing)
        place = torch.zeros(batch.labels.numel(), dtype=torch.int64, device=device)
        place[batch.valid] = torch.arange(len(entries), device=device)
        known_ids, masses = (
            torch.from_numpy(each).to(device) for each in (ids.astype(np.int64), logs)
        )
        return lambda positions: GappedLogits(known_ids[place[positions]], masses[place[positions]])

    def _entries(self, batch: Batch) -> np.ndarray:
        """The entry for the token that each valid position predicts, or -1."""
        predicted = batch.valid.cpu().numpy() + 1
        flat = (each.flatten().cpu().numpy() for each in (batch.document, batch.offset))
        document, offset = (each[predicted] for each in flat)
        return self._match(batch.split).entries(document, offset)

    def _match(self, split: Split) -> Match:
        """The match of a split of the data, computed at its first use."""
        if split.fingerprint not in self._matched:
            run = self._run
            self._matched[split.fingerprint] = match(
                self._records,
                self._of_documents(split),
                np.asarray(split.lengths, np.int64),
                lambda places: run.ids(split.name, places),
                follows=self.position == "next",
                part=self.part,
            )
        return self._matched[split.fingerprint]

    def _of_documents(self, split: Split) -> Sequence[int]:
        """The record of each document."""
        if (key := self.key) is not None:
            columns = self._run.laid(split.name).columns()
            values = [each.get(key) for each in columns]
            return by_key(self._named, values, key, self._place)
        there = len(self._records.begins) - 1
        if split.name != "train" or there != len(split.lengths):
            raise RunError(
                f"{self._place} has {there:,} records, and the {split.name} data "
                f"{len(split.lengths):,} documents: by order, each record is of one training "
                "document; where data leaves some out or holds some out for validation, name a "
                "column that tells them apart as `key`, and in keep_columns of [data]"
            )
        return range(there)

    def _read(self, run: Run) -> tuple[Records, dict[object, int]]:
        """All records, in unnamed temporary files that the process's end removes."""
        k = self.ids_known()
        assert k is not None
        ids, logs, tokens = (_Flat(kind) for kind in (np.int32, np.float32, np.int32))
        counts, token_counts, named, where = [0], [0], dict[object, int](), list[str]()
        with progress(f"reading {self._place}"):
            for n, record in enumerate(self._source.read()):
                made = self._columns.read(record, k, run.vocabulary)
                ids.add(made.ids)
                logs.add(made.logs)
                counts.append(len(made.ids))
                if self.tokens is not None:
                    own = _tokens_of(record, self.tokens)
                    tokens.add(own)
                    token_counts.append(len(own))
                if self.key is not None:
                    self._name(named, record, n)
                where.append(record.where)
        found = Records(
            ids.array(k),
            logs.array(k + 1),
            np.cumsum(counts),
            tokens.array(None) if self.tokens is not None else None,
            np.cumsum(token_counts),
            where.__getitem__,
        )
        return found, named

    def _name(self, named: dict[object, int], record: Record, n: int) -> None:
        value = record.values.get(str(self.key))
        if not isinstance(value, str | int | float):
            raise RunError(f"{record.where} has no text or number in the column {self.key!r}")
        if value in named:
            raise RunError(f"{record.where} has {value!r} in {self.key!r}, as an earlier one has")
        named[value] = n

    @property
    def _is_here(self) -> bool:
        return all(map(is_here, self._paths))

    @cached_property
    def _first_k(self) -> int:
        if not self._is_here:  # reported by `missing` and `faults`
            return 1
        for record in self._source.read():
            some = [len(ids) for ids, _ in self._columns.entries(record) if len(ids)]
            if some:
                return min(some)
        raise RunError(f"{self._place} has no positions: its lists are empty")

    @cached_property
    def _packing(self) -> Packing:
        return Packing.of(self.compression, self._paths)

    @property
    def _source(self) -> Several[Record]:
        return source(self._paths, self.split, Reader(None), lambda said: None)

    @property
    def _paths(self) -> Sequence[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def _place(self) -> str:
        return self._paths[0] if len(self._paths) == 1 else f"the {len(self._paths)} paths"


def _tokens_of(record: Record, column: str) -> np.ndarray:
    found = record.values.get(column)
    if not isinstance(found, Sequence) or not all(map(is_id, found)):
        raise RunError(f"{record.where}: {column!r} should hold a list of ids")
    return np.array(found, np.int32)


class _Flat:
    """Arrays appended to an unnamed temporary file."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._file: IO[bytes] = TemporaryFile()  # noqa: SIM115  # mapped while in use
        self._dtype = dtype

    def add(self, array: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(array, self._dtype).tobytes())

    def array(self, width: int | None) -> np.ndarray:
        """The whole content, [n] or [n, width]."""
        self._file.flush()
        shape = (-1,) if width is None else (-1, width)
        if not self._file.tell():
            return np.zeros((0, *shape[1:]), self._dtype)
        return np.memmap(self._file, self._dtype, "r").reshape(shape)
