"""A data set on the hub: its configs and their rows, offline too if already downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from kdcore import RunError, progress

_Loaded = TypeVar("_Loaded")

_UNREACHABLE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError"}


def configs_of(name: str) -> Sequence[str]:
    """The names of a data set's configs."""
    return _loaded(lambda: _in_card(name) or _asked(name), name)


def rows_of(name: str, config: str) -> Iterable[Mapping[str, object]]:
    """The rows of a config. Evaluation sets have one split, "train"."""
    from datasets import load_dataset

    table: Any = _loaded(lambda: load_dataset(name, config, split="train"), f"{name}, {config}")
    rows: Iterable[Mapping[str, object]] = table
    return rows


def _in_card(name: str) -> Sequence[str]:
    """The configs listed in the card, which is on disk; `datasets` ignores it when offline."""
    from huggingface_hub import DatasetCard
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        card = DatasetCard.load(name).data.to_dict()
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return []
    return [config["config_name"] for config in card.get("configs") or []]


def _asked(name: str) -> Sequence[str]:
    from datasets import get_dataset_config_names

    return list(get_dataset_config_names(name))


def _loaded(load: Callable[[], _Loaded], place: str) -> _Loaded:
    """The loaded data set; errors become one sentence."""
    from datasets.exceptions import DatasetsError

    try:
        with progress(f"loading {place}"):
            return load()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise RunError(f"cannot load the pairs of {place}: {_error(error)}") from error


def _error(error: BaseException) -> str:
    names = {type(cause).__name__ for cause in _chain(error)}
    if isinstance(error, ConnectionError) or names & _UNREACHABLE:
        return (
            "there is no such file or folder here, and the hub cannot be reached; connect, "
            "or set path to a folder of JSONL files"
        )
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        return "neither a file or folder here nor a data set on the hub; set path"
    return str(error).strip().split("\n")[0] or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
