"""A model's parameters by part: embeddings, each kind of block, norms, head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from kdcore.api.loss import HiddenStatesLoss


@dataclass(frozen=True)
class Part:
    """Identical parts of a model, and the parameters of each."""

    name: str
    count: int
    each: int
    trained: int  # number of trained ones in all of them
    note: str = ""

    @property
    def total(self) -> int:
        """The parameters of all of them."""
        return self.count * self.each


def parts_of(model: PreTrainedModel) -> list[Part]:
    """Every parameter, counted once, in the order of the forward pass; a tied head is marked."""
    pieces: dict[tuple[str, str], list[Tensor]] = {}
    for name, index, parameter in _named(model):
        pieces.setdefault((name, index), []).append(parameter)
    kinds: dict[tuple[str, int], list[int]] = {}
    for (name, _), parameters in pieces.items():
        size = sum(p.numel() for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        kinds.setdefault((name, size), []).append(trained)
    parts = [Part(name, len(each), size, sum(each)) for (name, size), each in kinds.items()]
    if _is_tied(model):
        parts.append(Part("head", 1, 0, 0, "tied: the embeddings are used"))
    return parts


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model's trunk; the model itself if it has none."""
    lists = (each for each in model.modules() if isinstance(each, nn.ModuleList))
    return list(next(lists, [model]))  # the outermost list comes first


def largest_layer(model: nn.Module) -> nn.Module:
    """The layer with most parameters."""
    return max(layers_of(model), key=lambda layer: sum(p.numel() for p in layer.parameters()))


def learned_parts(losses: Iterable[HiddenStatesLoss]) -> list[Part]:
    """Parameters that losses learn, which are not part of the finished model."""
    parts = []
    for loss in losses:
        learned = loss.learned()
        sizes = Counter(p.numel() for p in learned.parameters()) if learned is not None else {}
        name = f"learned by {loss.name}"
        parts += [Part(name, count, size, count * size) for size, count in sizes.items()]
    return parts


def parameters_of(model: nn.Module) -> tuple[int, int]:
    """The number of all parameters, and of trained ones."""
    counts: Counter[bool] = Counter()
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return counts.total(), counts[True]


def _named(model: PreTrainedModel) -> Iterator[tuple[str, str, Tensor]]:
    """Each parameter with the name of its part, and which of the identical parts it is in."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    seen: set[int] = set()
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield *_place(path, module, is_head=module is head), parameter


def _place(path: str, module: nn.Module, *, is_head: bool) -> tuple[str, str]:
    steps = path.split(".")
    at = next((n for n, step in enumerate(steps) if step.isdigit()), None)
    if is_head:
        return "head", ""
    name = "norm" if "norm" in type(module).__name__.lower() else ""
    if at is None:
        kind = "embeddings" if isinstance(module, nn.Embedding) else steps[-1]
        return name or kind, ""
    # "model.layers.3.mlp.gate_proj" is the part "layers: mlp.gate_proj", in layer 3.
    inner = "norms" if name else ".".join(steps[at + 1 : at + 3])
    return f"{steps[at - 1]}: {inner}", steps[at]


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embeddings = model.get_input_embeddings()
    return getattr(head, "weight", None) is embeddings.weight
