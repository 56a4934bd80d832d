"""Where a model is: a folder, an adapter or the hub, if that is reachable; and trusted code."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from kdcore.errors import KdcoreError, RunError
from kdcore.files import exception_chain

_log = logging.getLogger("kdcore")
_ATTEMPTS = 2
_NO_CONNECTION = {"ConnectError", "ConnectTimeout"}  # of httpx, by whatever name the hub has it
_reached: set[str] = set()  # endpoints that have answered in this process


def location_of(name: str) -> str:
    """A folder's path with `~` expanded, or the name on the hub."""
    return os.path.expanduser(name)


def refuse_pickle(name: str) -> None:
    """Raise RunError for a folder with pickled weights only: unpickling can run arbitrary code."""
    place = location_of(name)
    files = os.listdir(place) if os.path.isdir(place) else []
    pickled = sorted(each for each in files if each.endswith((".bin", ".pt", ".pth", ".pkl")))
    if pickled and not any(each.endswith(".safetensors") for each in files):
        raise RunError(
            f"cannot load {name!r}: its weights are a pickle ({pickled[0]}), which may run code; "
            "convert them to model.safetensors first, in a sandbox, with from_pretrained and "
            "save_pretrained of transformers"
        )


def is_path(name: str) -> bool:
    """Whether this cannot be a hub name, which has at most one slash."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def is_absent(name: str) -> bool:
    """Whether this can only be a folder, and there is none."""
    return is_path(name) and not os.path.isdir(location_of(name))


@contextmanager
def loading_error(name: str, key: str | None) -> Iterator[None]:
    """The reason why loading `name` failed, in one sentence."""
    there = os.path.isdir(location_of(name))
    if is_absent(name):
        raise RunError(f"cannot load {name!r}: there is no such folder")
    try:
        with nullcontext() if there else without_vain_retries():
            yield
    except KdcoreError:
        raise
    except Exception as error:  # files that are no model can break libraries in any way
        why = _folder_error(error, location_of(name)) if there else _hub_error(error, key)
        if "trust_remote_code" in str(error):
            why = (
                "it brings code of its own, which is not run; if you know that code, say "
                f'trust_remote_code = ["{name}"] at the top of the recipe'
            )
        raise RunError(f"cannot load {name!r}: {why}") from error


_FAULTS = {
    "instantiate the backend tokenizer": (
        "it has no tokenizer that can be read (tokenizer.json); copy the model's own there"
    ),
    "Unrecognized model": (
        "it has no config.json with a model_type, as save_pretrained writes it; copy the model's "
        "own there"
    ),
    "Unrecognized configuration class": (
        "its config.json is not of a causal language model; name one that writes text, or the "
        "language model of one that also reads images, saved on its own"
    ),
    "not compiled with CUDA": "this machine has no CUDA device; leave `device` out",
    "No CUDA GPUs": "this machine has no CUDA device; leave `device` out",
    "invalid device ordinal": "this machine has no such CUDA device; leave `device` out",
}
"""Messages of libraries, and what they mean."""


def _folder_error(error: Exception, place: str) -> str:
    if adapters := sorted(each.parent.name for each in Path(place).glob("*/adapter_config.json")):
        which = ", ".join(map(repr, adapters))
        return (
            f"the folder holds adapters, each in a folder of its own ({which}); name one of these"
        )
    found = next((ours for said, ours in _FAULTS.items() if said in str(error)), None)
    return f"the folder is there, but {found or _first_line(error)}"


def _hub_error(error: Exception, key: str | None) -> str:
    instead = f"give a local folder{_at(key)}"
    causes = {type(cause).__name__ for cause in exception_chain(error)}
    if "GatedRepoError" in causes:
        return (
            "not a local folder, and the repository on the hub is gated: request access there, "
            "then hf auth login"
        )
    if "RepositoryNotFoundError" in causes:
        return f"not a folder here, and the hub has no such model (or a private one); {instead}"
    if isinstance(error, OSError) and causes & _UNREACHABLE:
        return f"not a folder here and the hub cannot be reached; download it, or {instead}"
    return _first_line(error)


def _at(key: str | None) -> str:
    if key is None:
        return ': model = "PATH"'
    return f" with {key} PATH" if key.startswith("--") else f" with --set {key}=PATH"


_UNREACHABLE = {
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
}


def _first_line(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    speaks = isinstance(error, OSError | ValueError | ImportError | RuntimeError) and first
    return first if speaks else f"{type(error).__name__}: {first}".removesuffix(": ")


_named: set[str] = set()


def set_trusted(names: Sequence[str]) -> None:
    """Trust exactly these names from now on, as the recipe's `trust_remote_code` lists them."""
    _named.clear()
    _named.update(names)
    for name in names:
        _log.warning("the recipe trusts %r: code from there may run in this process", name)


def is_trusted(name: str) -> bool:
    """Whether remote code of this model or tokenizer may run; by its exact name in the recipe."""
    return name in _named


def file_on_hub(name: str, file: str) -> str | None:
    """The local path of a hub file; None if it is not available."""
    from transformers.utils.hub import cached_file

    found: str | None = None
    # Loading reports what is wrong.
    with suppress(OSError, ValueError), without_vain_retries():
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return found


@contextmanager
def without_downloads() -> Iterator[None]:
    """In this context, hub libraries use local files only."""
    import datasets.config
    import huggingface_hub.constants

    # Both read the environment at import, and these names afterwards.
    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


@contextmanager
def without_vain_retries() -> Iterator[None]:
    """In this context, local files only if the hub cannot be reached.

    huggingface_hub would retry each file for 23 seconds. A hub that has answered keeps all retries.
    """
    if _is_reachable():
        yield
    else:
        with without_downloads():
            yield


def _is_reachable() -> bool:
    """Whether the hub answers anything, or is switched off by the user."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or constants.ENDPOINT in _reached:
        return True
    if any(_answers(constants.ENDPOINT) for _ in range(_ATTEMPTS)):
        _reached.add(constants.ENDPOINT)
        return True
    return False


def _answers(address: str) -> bool:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(address, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the hub's HTTP library differs between its versions
        return type(error).__name__ not in _NO_CONNECTION
    return True
