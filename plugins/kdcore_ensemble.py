"""An ensemble of teachers: the average of their logits or probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    CombinedTeacher,
    Completion,
    LogitsFn,
    NextTokens,
    Prompt,
    Run,
    Sampling,
    Stage,
    Teacher,
    TeacherOutputs,
    UsageError,
    component,
    hookimpl,
    read,
    sample_from,
)

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@component
class Ensemble(CombinedTeacher):
    """Several teachers over the student's vocabulary, combined into one.

    "logits" averages logits before any temperature, so confident members dominate; "probs" averages
    probabilities at temperature 1; "losses" averages the values of each loss over members, and
    everything else reads the averaged probabilities. Weights are normalised to sum to 1; without
    weights, members count equally.
    """

    name = "ensemble"
    weights: list[Weight] | None = None
    average: Literal["logits", "probs", "losses"] = "logits"

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.members):
            raise UsageError(
                f"the ensemble has {len(self.weights)} weights for {len(self.members)} members; "
                "give one for each, or none"
            )

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject members that know only some ids: the others cannot be averaged."""
        for member in self.members:
            if member.ids_known() is not None:
                known = (
                    f"the member {member.name!r} knows {member.ids_known()} ids of each position"
                )
                yield f"{known}, and an average needs all; wrap the whole ensemble instead"
            if member.gives_parts():
                yield (
                    f"the member {member.name!r} averages losses, which nothing else can average: "
                    "name its members here instead"
                )
        yield from super().faults(recipe)

    def load(self, run: Run) -> None:
        """As all combined teachers; writing asks the run."""
        super().load(run)
        self._run = run

    def read(self, batch: Batch) -> LogitsFn:
        """Every member reads the batch. The logits of all members are never in memory at once."""
        members = [self._read(member, batch) for member in self.members]
        average = _mean if self.average == "logits" else _mixture
        shares = self._shares()
        return lambda positions: average((member(positions) for member in members), shares)

    def writes(self) -> bool:
        """Whether every member gives next-token scores."""
        return self.tells_next_tokens()

    def tells_next_tokens(self) -> bool:
        """Whether every member does, and all of them stay on the device."""
        return not self.takes_turns() and all(each.tells_next_tokens() for each in self.members)

    def next_tokens(self, rows: Sequence[Sequence[int]], vocabulary: int) -> NextTokens:
        """The average of the members' scores, each of which continues with the same token."""
        members = [member.next_tokens(rows, vocabulary) for member in self.members]
        return _Together(members, _mean if self.average == "logits" else _mixture, self._shares())

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[Completion]:
        """One answer per prompt, sampled from the average token by token."""
        assert sampling.vocabulary is not None, "the run says which ids are shared"
        together = self.is_sharded() and self._run.shares_calls
        if not prompts and not together:
            return []
        rows = [prompt.ids for prompt in prompts] or [[0]]
        following = self.next_tokens(rows, sampling.vocabulary)
        return sample_from(following, prompts, sampling, source="teacher", together=together)

    def gives_parts(self) -> bool:
        """Whether losses are averaged."""
        return self.average == "losses"

    def parts(self, batch: Batch) -> Sequence[tuple[float, TeacherOutputs]] | None:
        """Each member separately, with its weight."""
        if self.average != "losses":
            return None
        each = [self._read(member, batch) for member in self.members]
        return list(zip(self._shares(), each, strict=True))

    def _read(self, member: Teacher, batch: Batch) -> LogitsFn:
        with self.present(member):
            return read(member, batch)

    def _shares(self) -> list[float]:
        weights = self.weights or [1.0] * len(self.members)
        return [weight / sum(weights) for weight in weights]


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `ensemble`."""
    return [Ensemble]


class _Together:
    """The next-token scores of several models, combined into one."""

    def __init__(
        self,
        members: Sequence[NextTokens],
        average: Callable[[Iterable[Tensor], Iterable[float]], Tensor],
        shares: Sequence[float],
    ) -> None:
        self._members, self._average, self._shares = members, average, shares

    def logits(self) -> Tensor:
        """[rows, V], on the first member's device."""
        first, *others = (member.logits() for member in self._members)
        return self._average([first, *(each.to(first.device) for each in others)], self._shares)

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """Append one token to each of these rows."""
        for member in self._members:
            member.advance(ids, going)


def _mean(logits: Iterable[Tensor], shares: Iterable[float]) -> Tensor:
    return reduce(torch.add, (each * share for each, share in zip(logits, shares, strict=True)))


def _mixture(logits: Iterable[Tensor], shares: Iterable[float]) -> Tensor:
    """Log-probabilities of the mixture, which serve as its logits."""
    weighted = (
        each.log_softmax(-1) + math.log(share) for each, share in zip(logits, shares, strict=True)
    )
    return reduce(torch.logaddexp, weighted)
