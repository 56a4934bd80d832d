"""The model behind a server, for a new recipe: its name, and whether it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdcore_served.apis import Model, SGLang, Vllm
from kdcore_served.client import Client, Refused

from kdcore.errors import UsageError

_K = 20  # vLLM's default maximum
_PATIENCE = 5.0  # seconds
_TRIED = (1, 2, 3)  # ids that every model has


@dataclass(frozen=True)
class ServedModel:
    """A model on a server that returns k ids at each position."""

    url: str
    name: str
    api: str
    k: int
    length: int | None  # of the longest prompt with its completion
    tokenizer: str  # a folder, or a hub name
    chats: bool = True  # whether that tokenizer has a chat template


def is_address(teacher: str) -> bool:
    """Whether a teacher is given as the address of a server."""
    return teacher.startswith(("http://", "https://"))


def look_at_server(address: str, tokenizer: str | None) -> ServedModel:
    """Query a server's models, and try one short text. `address` may end with #MODEL.

    Raises RunError or UsageError with what to type.
    """
    url, _, wanted = address.partition("#")
    client = Client(url, timeout=30.0, give_up_after=_PATIENCE)
    model = _chosen(url, Vllm(client).models(), wanted)
    return ServedModel(
        url=url,
        name=model.name,
        api=_kind(client, model.name),
        k=_K,
        length=model.length,
        tokenizer=tokenizer or model.root or model.name,
    )


def _chosen(url: str, models: Sequence[Model], wanted: str) -> Model:
    names = ", ".join(each.name for each in models)
    found = [each for each in models if wanted in ("", each.name)]
    if not models:
        raise UsageError(f"{url} serves no model")
    if len(found) == 1:
        return found[0]
    if wanted:
        raise UsageError(f"{url} does not serve {wanted!r}; it serves {names}")
    raise UsageError(f"{url} serves several models: type --teacher {url}#NAME, of {names}")


def _kind(client: Client, model: str) -> str:
    """The server's API."""
    try:
        Vllm(client).likeliest(model, _TRIED, _K)
    except Refused as error:
        if error.status not in (404, 405):  # the path does not exist
            raise
        SGLang(client).likeliest(model, _TRIED, _K)
        return "sglang"
    return "vllm"
