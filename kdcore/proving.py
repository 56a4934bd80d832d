"""What a model does to its hidden states, tried on a few random ids and not believed before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from kdcore.bends import Bend, bends_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest value
_HALF_TOLERANCE = 1e-2


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; every module's mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def random_ids(model: PreTrainedModel, device: torch.device) -> Tensor:
    """Two rows of sixteen ids, the same each time; no random state is touched."""
    embedding = cast(Tensor, model.get_input_embeddings().weight)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(embedding), (2, 16), generator=generator).to(device)


@dataclass(frozen=True)
class Proved:
    """That the model's logits are its head applied to its trunk, then `bend` if there is one."""

    bend: Bend | None


def prove(model: PreTrainedModel, trunk: nn.Module, head: nn.Linear, ids: Tensor) -> Proved | None:
    """Try what the model may do with the states; None where it does something else.

    The head is fed enlarged states too: a fresh model's logits are so small that capping them
    changes nothing yet.
    """
    seen: list[Tensor] = []

    def enlarge(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen.append(inputs[0])
        return (inputs[0] * (100 / (inputs[0] @ head.weight.t()).abs().max()),)

    states: Tensor = trunk(input_ids=ids, use_cache=False)[0]
    hook = head.register_forward_pre_hook(enlarge)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    if len(seen) != 1 or not same(seen[0], states):
        return None
    made = head(*enlarge(head, (seen[0],)))
    if same(logits, made):
        return Proved(None)
    return next((Proved(bend) for bend in bends_of(model) if same(logits, bend(made))), None)


def same(a: Tensor, b: Tensor, *, times: int = 1) -> bool:
    """Equal shapes, and values equal up to the rounding of their type, or so many times that."""
    if a.shape != b.shape:
        return False
    apart = (a.float() - b.float()).abs().max()
    rounding = _TOLERANCE.get(a.dtype, _HALF_TOLERANCE) * times
    return bool(apart <= rounding * b.float().abs().max())
