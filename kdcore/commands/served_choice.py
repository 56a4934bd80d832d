"""The model behind a server, for a new recipe: what it is called, and that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdcore_served.apis import Model, SGLang, Vllm
from kdcore_served.client import Client, Refused

from kdcore.errors import UsageError

_K = 20  # that vLLM gives by default
_PATIENCE = 5.0  # seconds
_TRIED = (1, 2, 3)  # ids that any model has


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has, which tells of k ids at each position."""

    url: str
    name: str
    api: str
    k: int
    length: int | None  # of the longest prompt with its answer
    tokenizer: str  # a folder, or a name on the hub
    chats: bool = True  # whether that tokenizer has a chat template


def is_address(teacher: str) -> bool:
    """Whether a teacher is named by the address of a server."""
    return teacher.startswith(("http://", "https://"))


def look_at_server(address: str, tokenizer: str | None) -> ServedModel:
    """Ask a server what it serves, and try one short text. `address` may end with #MODEL.

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
    """How the server is asked."""
    try:
        Vllm(client).likeliest(model, _TRIED, _K)
    except Refused as error:
        if error.status not in (404, 405):  # it has no such path
            raise
        SGLang(client).likeliest(model, _TRIED, _K)
        return "sglang"
    return "vllm"
