"""The contract of losses between hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from kdcore.api.component import component
from kdcore.api.contracts import Loss
from kdcore.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Pair = Annotated[list[int], Field(min_length=2, max_length=2)]


@component
class HiddenStatesLoss(Loss):
    """A loss between hidden states of the student and of the teacher at each token.

    `layers` are pairs (student, teacher), counted as transformers' `hidden_states`: 0 the
    embeddings, -1 behind the last norm. Where the states differ in width, `projection = "linear"`
    learns a matrix for each pair that takes the student's to the teacher's; it is trained with the
    student and is no part of the final model.
    """

    layers: Annotated[
        list[Pair],
        Field(min_length=1, description="pairs (student, teacher): 0 the embeddings, -1 the last"),
    ] = field(default_factory=lambda: [[-1, -1]])
    projection: Annotated[
        Literal["none", "linear"],
        Field(
            description='"linear" learns a matrix for each pair, from the student to the teacher'
        ),
    ] = "none"

    def __post_init__(self) -> None:
        self._learned: nn.ModuleList | None = None

    def per_token_states(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """For each pair the states [n, H] of student, as `projected` gives them, and teacher ->
        values [n].

        Of the tokens that the term sees; float32 in and out. It must not write into its inputs.
        """
        raise NotImplementedError

    def projected(self, student: Sequence[Tensor]) -> Sequence[Tensor]:
        """The student's states of each pair, as they are compared."""
        if self._learned is None:
            return student
        return [matrix(each) for matrix, each in zip(self._learned, student, strict=True)]

    def set_sizes(self, student: Sequence[int], teacher: Sequence[int], seed: int) -> None:
        """Make what is learned, for pairs of states of these widths; called once, before a run.

        The same seed gives the same numbers on every device. Raises UsageError where states cannot
        be compared.
        """
        if self.projection == "none":
            for pair, ours, theirs in zip(self.layers, student, teacher, strict=True):
                if ours != theirs:
                    raise UsageError(f"the loss {self.name!r}: {width_fault(pair, ours, theirs)}")
            return
        generator = torch.Generator().manual_seed(seed)
        self._learned = nn.ModuleList()
        for ours, theirs in zip(student, teacher, strict=True):
            # On no device first, so that no generator of others is drawn from.
            matrix = nn.Linear(ours, theirs, bias=False, device="meta")
            matrix.weight = nn.Parameter(torch.empty(theirs, ours))
            nn.init.uniform_(matrix.weight, -(ours**-0.5), ours**-0.5, generator=generator)
            self._learned.append(matrix)

    def learned(self) -> nn.Module | None:
        """What is trained besides the student: without weight decay, and clipped by itself."""
        return self._learned

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The parameters of what is learned."""
        learned = self.learned()
        return {} if learned is None else learned.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        learned = self.learned()
        if learned is not None:
            learned.load_state_dict(dict(state))

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Refused: it knows no logits."""
        raise UsageError(
            f"loss {self.name!r} compares hidden states: it can be a [[loss]], and neither a score "
            "of a selection nor an eval"
        )


def width_fault(pair: Sequence[int], student: int, teacher: int) -> str:
    """What to say of two layers whose states cannot be compared as they are."""
    return (
        f"the student's state {pair[0]} has {student} numbers and the teacher's state {pair[1]} "
        f'has {teacher}; projection = "linear" learns a matrix between them'
    )
