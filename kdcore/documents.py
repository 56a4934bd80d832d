"""Documents that data hands over as ids and labels, kept as the tokens of texts are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from kdcore.errors import PluginError
from kdcore.fingerprints import digest
from kdcore.token_store import TokenStore, by_size, stored

if TYPE_CHECKING:
    from kdcore.api import Data
    from kdcore.batch import Row

_COLUMNS = ("ids", "labels", "lengths")


def keep_documents(
    data: Data, split: str, documents: Callable[[], Iterable[Row]], key: str
) -> TokenStore:
    """The documents on disk, asked for only if there are none under the key."""
    hashed = digest()
    hashed.update(f"documents 1 {split} {key}".encode())

    def portions() -> Iterator[dict[str, np.ndarray]]:
        checked = _checked(documents(), f"data {data.name!r}: document {{}} of {split!r}")
        for portion in by_size(checked, lambda row: len(row["ids"])):
            yield _joined(portion)

    return TokenStore.of(stored(portions, hashed.hexdigest(), _COLUMNS))


def _joined(portion: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    nothing = np.empty(0, np.int32)
    flat = {
        key: np.concatenate([nothing, *(row[key] for row in portion)]) for key in ("ids", "labels")
    }
    return flat | {"lengths": np.array([len(row["ids"]) for row in portion], np.int32)}


def _checked(documents: Iterable[Row], which: str) -> Iterator[dict[str, np.ndarray]]:
    """The ids and labels of each document that has any; without labels all of it is trained."""
    for index, row in enumerate(documents):
        said = which.format(index)
        ids = _ids(row.get("input_ids"), f"{said} has 'input_ids'")
        given = row.get("labels")
        labels = ids if given is None else _ids(given, f"{said} has 'labels'")
        if len(ids) != len(labels):
            raise PluginError(f"{said} has {len(labels)} labels for {len(ids)} ids")
        if len(ids):
            yield {"ids": ids, "labels": labels}


def _ids(values: Any, which: str) -> np.ndarray:
    array = np.asarray([] if values is None else values)
    if array.ndim == 1 and not len(array):
        return array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        _refuse(which, array)
    return array.astype(np.int32)


def _refuse(which: str, array: np.ndarray) -> NoReturn:
    raise PluginError(
        f"{which} of the shape {list(array.shape)} and the type {array.dtype}, and must have a "
        "flat list of whole numbers"
    )
