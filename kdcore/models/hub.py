"""Whether the hub may be used: not at all, or only while it can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ATTEMPTS = 2
_NO_CONNECTION = {"ConnectError", "ConnectTimeout"}  # of httpx, by whatever name the hub has it
_reached: set[str] = set()  # endpoints that have answered in this process


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
    """In this context, a hub that cannot be reached is not asked: local files only.

    huggingface_hub would retry each file for 23 seconds. A hub that has answered is asked as usual,
    with all retries.
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
