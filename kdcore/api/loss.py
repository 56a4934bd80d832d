"""Losses of one token at a time: on logits, and on hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdcore.api.component import Component, component
from kdcore.api.options import as_call
from kdcore.api.schedule import Schedule
from kdcore.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdcore.api.train_options import On
    from kdcore.data.where import Where

Pair = Annotated[list[int], Field(min_length=2, max_length=2)]


class Loss(Component):
    """A per-token divergence or negative log-likelihood."""

    component_kind: ClassVar[str] = "loss"
    needs_teacher: ClassVar[bool] = True
    own_vocabulary: ClassVar[bool] = False  # True: it compares over the teacher's own ids

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Student logits [n, V], teacher logits [n, V] (None if not needed) and labels [n] ->
        values [n], in nats. With `own_vocabulary` the teacher's logits are [n, V_teacher], valid
        where a span of `Tokens.spans` begins.

        Float32 in and out. Must not modify its inputs. Gradients flow to the student's logits only.
        V may differ between calls: with a teacher that covers k ids, both sides have the logits of
        these ids followed by that of all other ids together, and labels index these k + 1.
        """
        raise NotImplementedError

    def temperatures(self) -> Sequence[float]:
        """The temperatures of both sides' softmax: the option `temperature`, or 1 without it.

        Where a teacher covers only k ids, a loss with one temperature T gets buckets that are exact
        at T. Empty: T varies during the run, as with a schedule, or by token; the loss then needs a
        teacher that covers all ids.
        """
        found = getattr(self, "temperature", 1.0)
        return [float(found)] if isinstance(found, (int, float)) else []

    def linear_in_teacher(self) -> bool:
        """Whether the gradient is linear in the teacher's probabilities. Unbiased estimates of
        these then give an unbiased gradient.
        """
        return False

    def formula(self) -> str:
        """What `per_token` computes, for `kdcore plan`, written in p(T), q(T) and the label y."""
        return as_call(self)


@dataclass(frozen=True, eq=False)
class Term:
    """A loss with its weight. `label` identifies it in records: `kl`, `kl.2` for a second one."""

    label: str
    use: str
    loss: Loss
    weight: float | Schedule
    on: On
    where: Where | None = None  # columns of the documents it sees; None: all documents

    def weight_at(self, done: float) -> float:
        """The weight when the share `done` of the run is complete."""
        return self.weight.at(done) if isinstance(self.weight, Schedule) else self.weight


@component
class HiddenStatesLoss(Loss):
    """A loss between hidden states of the student and of the teacher at each token.

    `layers` are pairs (student, teacher), indexed as in transformers' `hidden_states`: 0 is the
    embeddings, -1 the output of the final norm. Where widths differ, `projection = "linear"` learns
    a matrix per pair from the student's width to the teacher's. It trains with the student and is
    not part of the final model.
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
        """The student's (after `projected`) and the teacher's states [n, H] of each pair -> values
        [n].

        n counts the tokens that the term sees. Float32 in and out. Must not modify its inputs.
        """
        raise NotImplementedError

    def projected(self, student: Sequence[Tensor]) -> Sequence[Tensor]:
        """The student's states of each pair, projected to the teacher's width where configured."""
        if self._learned is None:
            return student
        return [matrix(each) for matrix, each in zip(self._learned, student, strict=True)]

    def set_sizes(self, student: Sequence[int], teacher: Sequence[int], seed: int) -> None:
        """Initialise learned parameters for pairs of these widths. Called once, before a run.

        The same seed gives the same values on every device. Raises UsageError where widths differ
        without a projection.
        """
        import torch
        from torch import nn

        if self.projection == "none":
            for pair, ours, theirs in zip(self.layers, student, teacher, strict=True):
                if ours != theirs:
                    raise UsageError(f"the loss {self.name!r}: {width_error(pair, ours, theirs)}")
            return
        generator = torch.Generator().manual_seed(seed)
        self._learned = nn.ModuleList()
        for ours, theirs in zip(student, teacher, strict=True):
            # The meta device skips default initialisation, which would advance the global RNG.
            matrix = nn.Linear(ours, theirs, bias=False, device="meta")
            matrix.weight = nn.Parameter(torch.empty(theirs, ours))
            # nn.Linear's own distribution, U(-1/sqrt(in), 1/sqrt(in)), from this generator.
            nn.init.uniform_(matrix.weight, -(ours**-0.5), ours**-0.5, generator=generator)
            self._learned.append(matrix)

    def learned(self) -> nn.Module | None:
        """Parameters trained along with the student: no weight decay, clipped separately."""
        return self._learned

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The learned parameters."""
        learned = self.learned()
        return {} if learned is None else learned.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        learned = self.learned()
        if learned is not None:
            learned.load_state_dict(dict(state))

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Raises UsageError: the loss compares hidden states, not logits."""
        raise UsageError(
            f"loss {self.name!r} compares hidden states, so it can only be a [[loss]], not the "
            "score of a selection or an eval"
        )


def width_error(pair: Sequence[int], student: int, teacher: int) -> str:
    """The error message for two layers of different width."""
    return (
        f"the student's state {pair[0]} has {student} numbers and the teacher's state {pair[1]} "
        f'has {teacher}; projection = "linear" learns a matrix between them'
    )
