"""bf16 working weights: forward and backward use copies of the float32 masters, cast once a step.

Autocast casts every weight in every micro-batch, and its gradient back. With a copy that is cast
once, the trunk runs in bf16 from the embeddings on, in fewer kernels. Outside of `in_use`, the
parameters are the float32 masters: optimizer, clipping, evaluation and checkpoints see nothing
else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcore.errors import RunError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.api.train_options import TrainOptions


class WorkingWeights:
    """The copies of a student's trained parameters.

    Gradients of a micro-batch are bf16; those of a step add up in float32.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._copies = [torch.empty_like(p, dtype=torch.bfloat16) for p in self._parameters]
        self._copies = [copy.detach() for copy in self._copies]
        self._gradients: dict[int, Tensor] = {}  # by index, in float32

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The parameters are their copies in the block, and have float32 gradients after it.

        If the block fails, there are no gradients.
        """
        masters = [p.data for p in self._parameters]
        torch._foreach_copy_(self._copies, masters)
        self._become(self._copies, {})
        found: dict[int, Tensor] = {}
        try:
            yield
            self.collect()
            found = self._gradients
        finally:
            self._gradients = {}
            self._become(masters, found)

    def collect(self) -> None:
        """Add the gradients of a micro-batch to those of the step."""
        some = [(n, p.grad) for n, p in enumerate(self._parameters) if p.grad is not None]
        new = [(n, grad) for n, grad in some if n not in self._gradients]
        old = [(n, grad) for n, grad in some if n in self._gradients]
        for n, grad in new:
            self._gradients[n] = torch.empty_like(grad, dtype=torch.float32)
        if new:
            torch._foreach_copy_([self._gradients[n] for n, _ in new], [grad for _, grad in new])
        if old:
            torch._foreach_add_([self._gradients[n] for n, _ in old], [grad for _, grad in old])
        for parameter in self._parameters:
            parameter.grad = None

    def _become(self, values: Sequence[Tensor], gradients: dict[int, Tensor]) -> None:
        """Give each parameter this value; a gradient of another type would be refused."""
        for n, (parameter, value) in enumerate(zip(self._parameters, values, strict=True)):
            parameter.grad = None
            parameter.data = value
            parameter.grad = gradients.get(n)


def average_gradients(parameters: Sequence[nn.Parameter], processes: int) -> None:
    """Average the gradients over all processes in float32; DDP would do so in bf16."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    under_way = [torch.distributed.all_reduce(grad, async_op=True) for grad in gradients]
    for each in under_way:
        each.wait()
    torch._foreach_div_(gradients, processes)


def check_working_weights(options: TrainOptions, accelerator: Accelerator) -> None:
    """Raise RunError for bf16 working weights where the run is in another precision."""
    if options.bf16_weights and accelerator.mixed_precision != "bf16":
        found = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
        raise RunError(
            f'train.bf16_weights = true needs precision "bf16", and on this device it is '
            f'"{found}"; type --set train.precision=bf16, or leave bf16_weights out'
        )
