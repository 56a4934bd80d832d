"""Per-document results of an evaluation, kept in the run folder.

`documents/step-N.safetensors` has four arrays of equal length, 16 bytes per document: `document`
(its index in the split, ascending), `nll` (the sum over its tokens in nats, float32), `tokens` and
`bytes` (UTF-8 bytes of these tokens' text). The metadata `rows` identify the rows: two files with
equal `rows` measured the same tokens of the same documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcore.errors import RunError
from kdcore.files import sync
from kdcore.hashing import digest

DOCUMENTS = "documents"
_ARRAYS = ("document", "nll", "tokens", "bytes")


@dataclass(frozen=True, eq=False)
class DocumentLosses:
    """The held-out documents with at least one predicted token, in the split's order."""

    document: np.ndarray  # int32 [d]
    nll: np.ndarray  # float32 [d]
    tokens: np.ndarray  # int32 [d]
    bytes: np.ndarray  # int32 [d]
    rows: str  # equal if the same tokens were measured

    def __len__(self) -> int:
        return len(self.document)

    def part(self, which: slice) -> DocumentLosses:
        """Some of the documents."""
        arrays = {name: getattr(self, name)[which] for name in _ARRAYS}
        return DocumentLosses(**arrays, rows=self.rows)

    def same_text(self, other: DocumentLosses) -> bool:
        """Whether the documents are the same, though possibly in other tokens."""
        return all(
            np.array_equal(mine, theirs)
            for mine, theirs in ((self.document, other.document), (self.bytes, other.bytes))
        )

    def save(self, folder: Path, step: int) -> None:
        """Write the file of the evaluation after a step, atomically."""
        from safetensors.numpy import save

        path = path_of(folder, step)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        partial.write_bytes(save(arrays, {"rows": self.rows, "step": str(step)}))
        sync(partial)
        partial.replace(path)


def path_of(folder: Path, step: int) -> Path:
    """The path of the per-document results after a step."""
    return folder / DOCUMENTS / f"step-{step}.safetensors"


def document_losses(sums: np.ndarray, keys: np.ndarray) -> DocumentLosses:
    """From float64 [documents, 3] sums (tokens, bytes, nats) and a hash of each document's ids."""
    known = np.flatnonzero(sums[:, 0])
    tokens, sizes = (sums[known, n].astype(np.int32) for n in (0, 1))
    hashed = digest()
    for array in (known.astype(np.int32), tokens, keys[known]):
        hashed.update(np.ascontiguousarray(array).data)
    nll = sums[known, 2].astype(np.float32)
    return DocumentLosses(known.astype(np.int32), nll, tokens, sizes, hashed.hexdigest())


def read_document_losses(folder: Path, step: int) -> DocumentLosses | None:
    """The per-document results of a run after a step; None if it kept none."""
    from safetensors import SafetensorError, safe_open

    path = path_of(folder, step)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            arrays: Mapping[str, np.ndarray] = {name: file.get_tensor(name) for name in _ARRAYS}
            return DocumentLosses(**arrays, rows=file.metadata()["rows"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}): remove it to compare without it") from error
