"""A teacher made of several: the average of their logits or of their probabilities."""

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
class Ensemble(Teacher):
    """Several teachers over the student's vocabulary, as one.

    "logits" averages their logits before any temperature, so a confident member counts for more;
    "probs" mixes their probabilities at temperature 1; with "losses" each loss is the average of
    its values over the members, and what else asks sees the mixture. Weights are divided by their
    sum; without any, members count alike.
    """

    name = "ensemble"
    members: Annotated[list[Teacher], Field(min_length=1)]
    weights: list[Weight] | None = None
    average: Literal["logits", "probs", "losses"] = "logits"
    keep_loaded: Annotated[
        Literal["all", "one"],
        Field(description="members on the device: all, or one after another; heads stay"),
    ] = "all"
    elsewhere = frozenset({"keep_loaded"})

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.members):
            raise UsageError(
                f"the ensemble has {len(self.weights)} weights for {len(self.members)} members; "
                "give one for each, or none"
            )

    def gives_logits(self) -> bool:
        """Whether every member does."""
        return all(member.gives_logits() for member in self.members)

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Members that know some ids only: of the others there is nothing to average."""
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
            if self.keep_loaded == "one" and not member.moves():
                yield (
                    f"the member {member.name!r} cannot leave the device (it is quantised, "
                    'offloaded, or holds no model itself): leave keep_loaded = "one" out'
                )

    def load(self, run: Run) -> None:
        """The engine loads the members; those that take turns leave the device again."""
        if self.takes_turns():
            for member in self.members:
                member.to_host()

    def takes_turns(self) -> bool:
        """As `keep_loaded` says."""
        return self.keep_loaded == "one"

    def read(self, batch: Batch) -> LogitsFn:
        """Every member reads the batch. At no time are the logits of all members in memory."""
        members = [self._read(member, batch) for member in self.members]
        average = _mean if self.average == "logits" else _mixture
        shares = self._shares()
        return lambda positions: average((member(positions) for member in members), shares)

    def writes(self) -> bool:
        """Where every member tells its next tokens."""
        return self.tells_next_tokens()

    def tells_next_tokens(self) -> bool:
        """Where every member does, and all of them stay on the device."""
        return not self.takes_turns() and all(each.tells_next_tokens() for each in self.members)

    def next_tokens(self, rows: Sequence[Sequence[int]], vocabulary: int) -> NextTokens:
        """The average at each token, of members that go on with the same token."""
        members = [member.next_tokens(rows, vocabulary) for member in self.members]
        return _Together(members, _mean if self.average == "logits" else _mixture, self._shares())

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[Completion]:
        """An answer to each, token by token from the average."""
        assert sampling.vocabulary is not None, "the run says which ids are shared"
        rows = [prompt.ids for prompt in prompts]
        following = self.next_tokens(rows, sampling.vocabulary)
        return sample_from(following, prompts, sampling, source="teacher")

    def gives_parts(self) -> bool:
        """Where losses are averaged."""
        return self.average == "losses"

    def parts(self, batch: Batch) -> Sequence[tuple[float, TeacherOutputs]] | None:
        """Every member by itself, with its share."""
        if self.average != "losses":
            return None
        each = [self._read(member, batch) for member in self.members]
        return list(zip(self._shares(), each, strict=True))

    def _read(self, member: Teacher, batch: Batch) -> LogitsFn:
        """One member, on the device for as long as its trunk runs where they take turns."""
        if not self.takes_turns():
            return read(member, batch)
        member.to_device()
        try:
            return read(member, batch)
        finally:
            member.to_host()

    def _shares(self) -> list[float]:
        weights = self.weights or [1.0] * len(self.members)
        return [weight / sum(weights) for weight in weights]


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The one above."""
    return [Ensemble]


class _Together:
    """Several models' scores of next tokens, as one."""

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
        """One more token for each of these rows."""
        for member in self._members:
            member.advance(ids, going)


def _mean(logits: Iterable[Tensor], shares: Iterable[float]) -> Tensor:
    return reduce(torch.add, (each * share for each, share in zip(logits, shares, strict=True)))


def _mixture(logits: Iterable[Tensor], shares: Iterable[float]) -> Tensor:
    """The log-probabilities of the mixture, which are logits of it."""
    weighted = (
        each.log_softmax(-1) + math.log(share) for each, share in zip(logits, shares, strict=True)
    )
    return reduce(torch.logaddexp, weighted)
