"""Initialisation: new random values for every matrix of a student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from kdcore import Patch, component, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_STD = 0.02


@component
class Init(Patch):
    """Redraw every matrix, embeddings included. Norms and biases are unchanged.

    "normal" has a standard deviation of 0.02, the default of most language models. The other
    schemes scale with a matrix's inputs (Kaiming, for ReLU) or with its inputs and outputs
    (Xavier).
    """

    name = "init"
    scheme: Literal[
        "kaiming-uniform", "kaiming-normal", "xavier-uniform", "xavier-normal", "normal"
    ] = "normal"

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Draw from torch's global generator, which the engine has seeded."""
        draw = _draws()[self.scheme]
        for matrix in _matrices(model):
            draw(matrix)
        return model


@hookimpl
def kdcore_patches() -> Sequence[type[Patch]]:
    """The patch `init`."""
    return [Init]


def _draws() -> dict[str, Callable[[Tensor], Tensor]]:
    from torch.nn import init

    return {
        "kaiming-uniform": init.kaiming_uniform_,
        "kaiming-normal": init.kaiming_normal_,
        "xavier-uniform": init.xavier_uniform_,
        "xavier-normal": init.xavier_normal_,
        "normal": lambda matrix: init.normal_(matrix, std=_STD),
    }


def _matrices(model: nn.Module) -> Iterator[Tensor]:
    """Every matrix once, tied ones included, in the layout [outputs, inputs, ...]."""
    from transformers.pytorch_utils import Conv1D

    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            # GPT-2 stores its linear layers as [inputs, outputs].
            yield parameter.data.t() if id(parameter) in transposed else parameter
