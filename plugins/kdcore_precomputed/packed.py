"""DistillKit's packed columns, lists of bytes: `compressed_logprobs` and `bytepacked_indices`.

At each position, `bytepacked_indices` has the k ids, the likeliest first, as whole numbers of
ceil(log2 d) bits; `compressed_logprobs` has, in this order, `exact_k` values in `exact_dtype`, one
coefficient per polynomial term in `term_dtype`, and for each residual bin a scale and its numbers.
Bits are packed from the highest on, and each stretch is filled up to a whole byte. The values
behind the exact ones are a polynomial of their index plus the residuals. With `delta_encoding`
values are differences from the one before. The description is their compression_config.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from kdcore_text.record import Record
from pydantic import BaseModel, Field, ValidationError

from kdcore import RunError

CONFIG = "compression_config.yaml"
LOGS, IDS = "compressed_logprobs", "bytepacked_indices"

_MASS = 1.25  # the largest sum of approximated masses, which are then scaled to 1

Dtype = Literal["float16", "bfloat16", "float32", "float64"]
Count = Annotated[int, Field(ge=0)]


class ResidualBin(BaseModel):
    """Quantised numbers that share a scale."""

    scale_dtype: Dtype
    element_bits: Annotated[int, Field(ge=1, le=64)]
    num_elements: Annotated[int, Field(ge=1)]


class Packing(BaseModel):
    """How records were packed, by the names of DistillKit's config."""

    d: Annotated[int, Field(ge=2)]
    k: Annotated[int, Field(ge=1)]
    exact_k: Count
    exact_dtype: Dtype = "float32"
    polynomial_terms: list[int | Literal["sqrt", "exp"]] | None = None
    term_dtype: Dtype = "float32"
    residual_bins: list[ResidualBin] = []
    delta_encoding: bool = True
    normalize_t: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, paths: Sequence[str]) -> Packing:
        """The given description, or the one in the file next to the records."""
        where = "compression"
        if given is None:
            import yaml  # type: ignore[import-untyped]  # only records of this kind need it

            path = _config_path(paths)
            if path is None:
                raise RunError(
                    f"the records of {paths[0]} are packed by DistillKit, and there is no {CONFIG} "
                    "next to them: set `compression` in [teacher] to what it says"
                )
            try:
                given, where = yaml.safe_load(path.read_text(encoding="utf-8")), str(path)
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise RunError(f"{path} cannot be read as YAML: {error}") from None
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise RunError(f"{where}: {place}: {first['msg'].lower()}") from None

    def entries(self, record: Record) -> list[tuple[list[int], list[float]]]:
        """The ids and log-probabilities at each position of a record."""
        logs = self._bytes(record, LOGS, self._log_bytes())
        ids = self._bytes(record, IDS, _packed_bytes(self.k, self._id_bits))
        if len(ids) != len(logs):
            raise RunError(
                f"{record.where} has {len(ids)} positions in {IDS!r} and {len(logs)} in {LOGS!r}"
            )
        values = self._scaled(self._unpacked(logs), record)
        whole = _numbers(ids, self._id_bits, self.k).tolist()
        return list(zip(whole, values.tolist(), strict=True))

    @property
    def _id_bits(self) -> int:
        return (self.d - 1).bit_length()

    def _log_bytes(self) -> int:
        exact = self.exact_k * _width(self.exact_dtype)
        terms = len(self.polynomial_terms or ()) * _width(self.term_dtype)
        return exact + terms + sum(map(_bin_bytes, self.residual_bins))

    def _bytes(self, record: Record, column: str, width: int) -> np.ndarray:
        """The bytes of each position, uint8 [n, width]."""
        rows = record.values.get(column)
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise RunError(f"{record.where} has no lists in the column {column!r}")
        for n, row in enumerate(rows, 1):
            count = len(row) if isinstance(row, Sequence) else 0
            if count != width:
                raise RunError(
                    f"{record.where}, position {n}: {column!r} has {count} bytes, and its "
                    f"compression needs {width}: is it the {CONFIG} of these records?"
                )
        found = np.array([[*row] for row in rows]).reshape(len(rows), width)
        if found.size and (found.dtype.kind != "i" or not 0 <= found.min() <= found.max() <= 255):
            raise RunError(f"{record.where}: {column!r} should hold bytes, numbers from 0 to 255")
        return found.astype(np.uint8)

    def _unpacked(self, packed: np.ndarray) -> np.ndarray:
        """Log-probabilities [n, k], as stored."""
        reader = _Reader(packed)
        exact = reader.values(self.exact_dtype, self.exact_k)
        tail = np.zeros((len(packed), self.k - self.exact_k), np.float32)
        if self.polynomial_terms:
            given = reader.values(self.term_dtype, len(self.polynomial_terms))
            tail += given @ self._terms()
        at = 0
        for one in self.residual_bins:
            scale = reader.values(one.scale_dtype, 1)
            tail[:, at : at + one.num_elements] += _residuals(reader, one) * scale
            at += one.num_elements
        whole = np.concatenate([exact, tail], 1)
        return whole.cumsum(1) if self.delta_encoding else whole

    def _terms(self) -> np.ndarray:
        """The terms at each index [terms, k - exact_k]."""
        count = self.k - self.exact_k
        at = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        named = {"sqrt": np.sqrt, "exp": np.exp}
        terms = self.polynomial_terms or ()
        return np.stack([at**n if isinstance(n, int) else named[n](at) for n in terms])

    def _scaled(self, logs: np.ndarray, record: Record) -> np.ndarray:
        """Approximations may exceed 0, and their masses 1: they are cut and scaled."""
        if self.exact_k == self.k:
            return logs
        logs = np.minimum(logs, 0.0)
        masses = np.exp(logs).sum(1, keepdims=True)
        if not (masses <= _MASS).all():
            n = int(np.flatnonzero(~(masses <= _MASS))[0])
            raise RunError(
                f"{record.where}, position {n + 1}: the unpacked masses are {masses[n, 0]:.4g} "
                f"together, and 1 at most: is it the {CONFIG} of these records?"
            )
        scaled: np.ndarray = logs - np.log(np.maximum(masses, 1.0))
        return scaled


@dataclass
class _Reader:
    """Reads each position's bytes from the first to the last [n, bytes]."""

    packed: np.ndarray
    at: int = 0

    def take(self, count: int) -> np.ndarray:
        """The next bytes of each position, contiguous."""
        self.at += count
        return self.packed[:, self.at - count : self.at].copy()

    def values(self, dtype: Dtype, count: int) -> np.ndarray:
        """The next floats, float64 [n, count]."""
        taken = torch.from_numpy(self.take(count * _width(dtype)))
        found = taken.view(getattr(torch, dtype)) if count else taken.double()
        values: np.ndarray = found.reshape(len(self.packed), count).double().numpy()
        return values


def _residuals(reader: _Reader, one: ResidualBin) -> np.ndarray:
    """A bin's numbers around 0, before scaling [n, elements]."""
    packed = reader.take(_packed_bytes(one.num_elements, one.element_bits))
    found = _numbers(packed, one.element_bits, one.num_elements).astype(np.float64)
    if one.element_bits == 1:
        return found * 2 - 1
    return found - 2.0 ** (one.element_bits - 1)


def _numbers(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Whole numbers of so many bits each, the highest bit first [n, count]."""
    flat = np.unpackbits(packed, axis=1, count=bits * count)
    each = flat.reshape(len(packed), count, bits).astype(np.uint64)
    powers = np.uint64(1) << np.arange(bits - 1, -1, -1, dtype=np.uint64)
    found: np.ndarray = (each * powers).sum(-1)
    return found


def _width(dtype: Dtype) -> int:
    return int(getattr(torch, dtype).itemsize)


def _bin_bytes(one: ResidualBin) -> int:
    return _width(one.scale_dtype) + _packed_bytes(one.num_elements, one.element_bits)


def _packed_bytes(count: int, bits: int) -> int:
    """Bytes of so many numbers, filled up to a whole one."""
    return -(-count * bits // 8)


def description(paths: Sequence[str]) -> str:
    """The text of the file that describes the packing; empty where there is none."""
    path = _config_path(paths)
    return "" if path is None else path.read_text(encoding="utf-8", errors="replace")


def _config_path(paths: Sequence[str]) -> Path | None:
    """The file next to the records that describes their packing."""
    folders = (Path(each) if Path(each).is_dir() else Path(each).parent for each in paths)
    return next((path for each in folders if (path := each / CONFIG).is_file()), None)
