"""Hidden states of chosen layers, captured while a trunk runs.

Indexed as in transformers' `hidden_states`: state i is the input of layer i, from 0, and the last
is the trunk's output after the final norm. Hooks capture only the chosen ones. They capture a
layer's input, so that layers may be checkpointed or compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from kdcore.errors import RunError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class HiddenStates:
    """The requested inputs of a trunk's layers."""

    def __init__(self, trunk: nn.Module, config: PretrainedConfig, title: str) -> None:
        self._trunk, self._title = trunk, title
        self._layers = _layers_of(trunk, config.get_text_config())
        self._places: dict[int, int] = {}  # index of each hooked module's state, by module id
        self._wanted: Sequence[int] = ()
        self._kept: dict[int, Tensor] | None = None  # None: not capturing

    def numbers(self, layers: Sequence[int]) -> list[int]:
        """Layer indices, with -1 as the last -> counted from 0 only."""
        last = len(self._layers)
        for layer in layers:
            if not -last - 1 <= layer <= last:
                raise RunError(f"the {self._title} {layer_error(layer, last)}")
        return [layer % (last + 1) for layer in layers]

    def hook(self, numbers: Sequence[int]) -> list[int]:
        """Capture these from now on, in addition to earlier ones."""
        new = sorted({*numbers} - {*self._places.values()})
        for number in new:
            if number < len(self._layers):
                module = self._layers[number]
                module.register_forward_pre_hook(self._keep_input, with_kwargs=True)
            else:
                module = self._trunk
                module.register_forward_hook(self._keep_output)
            self._places[id(module)] = number
        return new

    @contextmanager
    def keeping(self, numbers: Sequence[int]) -> Iterator[None]:
        """A context for trunk runs; `take` returns what each run captured."""
        self._wanted, self._kept = numbers, {}
        try:
            yield
        finally:
            self._wanted, self._kept = (), None

    def take(self) -> list[Tensor]:
        """The states of the last run, in the order requested."""
        kept, self._kept = self._kept, None if self._kept is None else {}
        return [] if kept is None else [kept[number] for number in self._wanted]

    def proved(self, new: Sequence[int], forward: Callable[..., Any]) -> list[int]:
        """The width of each state. Raises RunError if hooks capture others than transformers
        returns.

        `forward` runs the trunk, in evaluation mode.
        """
        with self.keeping(new), _hooks_put_back(self._trunk):
            found = getattr(forward(output_hidden_states=True), "hidden_states", None)
            kept = self._kept or {}
        if found is None or len(found) != len(self._layers) + 1:
            raise RunError(f"the {self._title} does not return the hidden states of its layers")
        for number in new:
            if number not in kept or not torch.equal(kept[number], found[number]):
                raise RunError(
                    f"the {self._title} returns hidden states for layer {number} that differ from "
                    "those that enter it"
                )
        return [int(each.shape[-1]) for each in found]

    def _keep_input(self, module: nn.Module, inputs: tuple[Any, ...], named: Any) -> None:
        if self._kept is not None:
            found = inputs[0] if inputs else named["hidden_states"]
            self._kept[self._places[id(module)]] = found

    def _keep_output(self, module: nn.Module, inputs: object, output: Any) -> None:
        if self._kept is not None:
            self._kept[self._places[id(module)]] = output[0]


def layer_error(layer: int, last: int) -> str:
    """The error message for a layer that a model with this many does not have."""
    return (
        f"has {last} layers, and no hidden state {layer}: they are 0 (the embeddings) to {last} "
        f"(behind the last norm), or -1 to {-last - 1}"
    )


def _layers_of(trunk: nn.Module, config: PretrainedConfig) -> Sequence[nn.Module]:
    """The list of modules as long as the config's layer count. None if there is none."""
    count = getattr(config, "num_hidden_layers", 0)
    lists = (each for each in trunk.modules() if isinstance(each, nn.ModuleList))
    found = next((each for each in lists if len(each) == count), ())
    return cast(Sequence[nn.Module], found)


@contextmanager
def _hooks_put_back(trunk: nn.Module) -> Iterator[None]:
    """Remove the hooks that transformers installs on every layer to return its states."""
    before = [(module, list(module._forward_hooks)) for module in trunk.modules()]
    mark = "_output_capturing_hooks_installed"
    marked = getattr(trunk, mark, False)
    try:
        yield
    finally:
        for module, known in before:
            for key in [key for key in module._forward_hooks if key not in known]:
                del module._forward_hooks[key]
        setattr(trunk, mark, marked)
