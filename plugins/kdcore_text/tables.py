"""Data sets of the `datasets` library, from files, folders and the Hugging Face hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcore import RunError, progress
from kdcore_text.folders import files_in
from kdcore_text.formats import ending_of
from kdcore_text.opening import refuse_pointer
from kdcore_text.paths import meant
from kdcore_text.record import Document, check_kept, document_of, no_column, text_of
from kdcore_text.streamed import StreamedColumn

_ADVICE = {
    "Unknown split": "set split, validation or validation_share",
    "BuilderConfig": "set config",
    "Config name is missing": "set config",
}


class Table:
    """Rows of named columns. `place` is the data set's name in messages."""

    def __init__(self, dataset: Any, place: str) -> None:
        self._dataset, self.place = dataset, place

    def count(self) -> int:
        """The number of rows."""
        return len(self._dataset)

    def texts(self, column: str, keep: Sequence[str] = ()) -> Column | StreamedColumn:
        """A text column, with the columns to keep."""
        if not hasattr(self._dataset, "__len__"):
            return StreamedColumn(self._dataset, column, self.place, keep)
        return Column(self._dataset, column, self.place, keep)

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Every row with all its columns."""
        for rows in self._dataset.iter(1000):
            for values in zip(*rows.values(), strict=True):
                yield dict(zip(rows, values, strict=True))


class Column:
    """A text column."""

    def __init__(self, dataset: Any, column: str, place: str, keep: Sequence[str] = ()) -> None:
        self._dataset, self._column, self._place, self._keep = dataset, column, place, keep
        if column not in dataset.column_names:
            raise no_column(place, column, dataset.column_names)
        check_kept(keep, dataset.column_names, place)

    def count(self) -> int:
        """The number of rows."""
        return len(self._dataset)

    def read(self) -> Iterator[Document]:
        """The text of every row; a missing value is an empty text."""
        names = list(dict.fromkeys([self._column, *self._keep]))
        for rows in self._dataset.select_columns(names).iter(1000):
            for n, text in enumerate(rows[self._column]):
                said = text_of(text, self._column, self._place)
                values = {name: rows[name][n] for name in self._keep}
                yield document_of(said, values, self._keep, self._place)


def of_files(form: str, paths: Sequence[Path], *, streaming: bool = False) -> Table:
    """Parquet or Arrow files with the same columns, one after another."""
    from datasets import load_dataset

    for path in paths:
        if not path.stat().st_size:
            raise RunError(f"{path} is empty")
        if ending_of(path) != path.suffix.lower():
            raise RunError(f"cannot read {path}: unpack it, as {form} has its own compression")
        _check_head(path)
    place = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    files = [glob.escape(str(path)) for path in paths]
    options = {"data_files": files, "split": "train", "streaming": streaming}
    try:
        return Table(_loaded(lambda: load_dataset(form, **options), place), place)
    except RunError:
        for path in paths if len(paths) > 1 else ():  # find the broken one
            of_files(form, [path], streaming=streaming)
        raise


def of_folder(
    path: Path, config: str | None, split: str | None, *, streaming: bool = False
) -> Table:
    """A folder that `datasets` saved or can load: parquet and JSON files, a clone.

    Split None is "validation", or the only split.
    """
    from datasets import load_dataset, load_from_disk

    place = f"the data set in {path}"
    for file in files_in(path):
        _check_head(file)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = _loaded(lambda: load_from_disk(str(path)), place)
    elif split is None:
        loaded = _loaded(lambda: load_dataset(str(path), config, streaming=streaming), place)
    else:
        options = {"split": split, "streaming": streaming}
        loaded = {split: _loaded(lambda: load_dataset(str(path), config, **options), place)}
    return Table(_split(loaded, split, place), place)


def of_hub(name: str, config: str | None, split: str, *, streaming: bool = False) -> Table:
    """A data set on the hub, downloaded once or streamed."""
    from datasets import load_dataset

    place = f"the data set {name!r}"
    options = {"split": split, "streaming": streaming}
    loaded = _loaded(lambda: load_dataset(name, config, **options), place, meant(name))
    return Table(loaded, place)


def _check_head(path: Path) -> None:
    """Reject Git LFS pointers, and JSON that begins with null: Arrow crashes the process on it."""
    with path.open("rb") as file:
        head = file.read(4096)
    refuse_pointer(head, path)
    if head.strip().startswith(b"null"):
        raise RunError(
            f'{path} starts with null; each record must be an object such as {{"text": "..."}}'
        )


def _split(loaded: Any, split: str | None, place: str) -> Any:
    """A split of a loaded data set; one saved without splits is "train"."""
    from datasets import Dataset

    splits = {"train": loaded} if isinstance(loaded, Dataset) else loaded
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    wanted = split or "validation"
    if wanted not in splits:
        raise RunError(f"{place} has no split {wanted!r}; it has {', '.join(splits)}")
    return splits[wanted]


def _loaded(load: Callable[[], Any], place: str, meant: str = "") -> Any:
    """The loaded data set; errors become one sentence. `meant` is a suggestion for the name."""
    from datasets.exceptions import DatasetsError

    try:
        with progress(f"loading {place}"):
            return load()
    # Its JSON readers raise various types for values that are not records.
    except (
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        LookupError,
        AttributeError,
        DatasetsError,
    ) as error:
        raise RunError(f"cannot load {place}: {_error(error, meant)}") from error


def _error(error: BaseException, meant: str) -> str:
    names = {type(cause).__name__ for cause in _chain(error)}
    if "GatedRepoError" in names:
        return "the repository on the hub is gated: request access there, then type `hf auth login`"
    if isinstance(error, ConnectionError) or names & {"ConnectError", "LocalEntryNotFoundError"}:
        return (
            f"there is no such file or folder in {os.getcwd()}, and the hub cannot be reached; "
            f"connect, or set path in [data] to a file or folder{meant}"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError"} or status == 404:
        return (
            f"neither a file or folder in {os.getcwd()} nor a data set on the hub (or a private "
            f"one: type `hf auth login`); set path in [data]{meant}"
        )
    return _said(error)


def _said(error: BaseException) -> str:
    """The library's error in one line, with the option that may solve it."""
    wrapped = type(error).__name__ == "DatasetGenerationError"
    said = str((error.__cause__ if wrapped else None) or error).strip().split("\n")
    beginning = next((each for each in _ADVICE if said[0].startswith(each)), None)
    if beginning is None:
        return said[0] or type(error).__name__
    # The second line may list the available values.
    return f"{' '.join(said[:2]).rstrip('.')}; {_ADVICE[beginning]} in [data]"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
