"""Acceptance rate of the student as a draft model for its teacher in speculative decoding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Completion,
    Eval,
    Loss,
    Prompt,
    Row,
    Run,
    RunError,
    Sampling,
    Stage,
    component,
    hookimpl,
)


@component
class Accepted(Loss):
    """The probability that the teacher accepts the drafted token: min(1, p(y) / q(y))."""

    name = "accepted"

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Values from 0 to 1 [n]."""
        assert teacher is not None
        q, p = student.log_softmax(-1), teacher.log_softmax(-1)
        return (p - q).gather(-1, labels[:, None])[:, 0].clamp(max=0).exp()


@component
class Overlap(Loss):
    """The probability that the teacher accepts a token drawn from q: the sum of min(p, q)."""

    name = "overlap"

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Values from 0 to 1 [n]: 1 - TV(p, q)."""
        assert teacher is not None
        return torch.minimum(student.softmax(-1), teacher.softmax(-1)).sum(-1)


class Expected(NamedTuple):
    """The expected outcome of one teacher call on one draft."""

    tested: float  # draft tokens verified: those up to and including the first rejected one
    accepted: float  # of these
    tokens: float  # produced by the call: accepted ones, and one of its own unless the text ended


@component
class Acceptance(Eval):
    """How many of the student's draft tokens the teacher accepts in speculative decoding.

    Leviathan et al. 2023 (arXiv:2211.17192), at temperature 1: the student drafts `draft_length`
    tokens; the teacher verifies them in one call, accepts each with probability min(1, p / q) until
    the first rejection, and adds one token of its own. The student writes one draft at each of
    `contexts` positions of held-out rows. The expectation over the teacher's choices is exact: the
    sum of min(p, q) replaces the drawn token where it may be rejected.

    `acceptance` is the share of accepted tokens among the verified ones, `tokens_per_call` the mean
    number of tokens that a call produces. Neither is a speed: give `draft_cost`, the measured time
    of one student step divided by that of one teacher call, to get `speed_up`, which is
    tokens_per_call / (draft_length * draft_cost + 1).
    """

    name = "acceptance"
    needs_teacher = True
    draft_length: Annotated[int, Field(ge=1, description="tokens that the student drafts")] = 4
    contexts: Annotated[int, Field(ge=1, description="held-out places that are drafted from")] = 256
    draft_cost: Annotated[
        float | None,
        Field(ge=0, description="time of a student's step over that of a teacher's call"),
    ] = None
    seed: Annotated[int, Field(ge=0, description="the same places at every evaluation")] = 0

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject a teacher without logits of all ids for the student's own tokens."""
        teacher = recipe.teacher
        if teacher is None:
            return
        whole = teacher.gives_logits() and teacher.ids_known() is None and teacher.knows_all()
        if not whole:
            said = f'the eval "acceptance" needs all of p, and the teacher {teacher.name!r} gives'
            yield f"{said} a part; take it where the teacher is a model that is read"
        if self.draft_length >= recipe.data.block:
            said = f"draft_length = {self.draft_length} leaves no room for a context in rows of"
            yield f"{said} {recipe.data.block} tokens"

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """`acceptance`, `tokens_per_call`, and with `draft_cost` also `speed_up`."""
        contexts = self.places(run)
        # With a sharded model all processes draft everything, as they must do so together.
        apart = run.processes > 1 and not run.shares_calls
        mine = contexts[run.process :: run.processes] if apart else contexts
        found = [expected(*each) for each in self.drafts(run, mine)]
        sums = torch.tensor(found, dtype=torch.float64).reshape(-1, 3).sum(0).to(run.device)
        if apart:
            torch.distributed.all_reduce(sums)
        tested, accepted, tokens = sums.tolist()
        per_call = tokens / len(contexts)
        scores: dict[str, float | str] = {"acceptance": accepted / tested}
        scores["tokens_per_call"] = per_call
        if self.draft_cost is not None:
            scores["speed_up"] = per_call / (self.draft_length * self.draft_cost + 1)
        return scores

    def places(self, run: Run) -> list[Prompt]:
        """Contexts that end before a predicted token of a held-out row; the same ones each time.

        Rows come in a random order drawn from the seed, repeated if there are too few.
        """
        rows, rng = run.rows("validation"), np.random.default_rng(self.seed)
        longest, prompts = run.data.block - self.draft_length, list[Prompt]()
        for n in np.resize(rng.permutation(len(rows)), self.contexts).tolist():
            ids = _context(rows[n], rng, longest)
            if ids is not None:
                prompts.append(Prompt(ids, seed=int(rng.integers(2**62))))
        if not prompts:
            raise RunError('the eval "acceptance" needs validation rows with tokens to predict')
        return prompts

    def drafts(
        self, run: Run, prompts: Sequence[Prompt]
    ) -> Iterable[tuple[Sequence[float], Sequence[float], bool]]:
        """Per draft, the arguments of `expected`."""
        eos = run.tokenizer.eos_token_id
        ends = frozenset([eos]) if isinstance(eos, int) else frozenset()
        sampling = Sampling(self.draft_length, ends=ends, vocabulary=run.vocabulary)
        for at in range(0, len(prompts), run.micro_batch):
            some = prompts[at : at + run.micro_batch]
            written: list[Completion] = run.sample(some, sampling=sampling)
            values = run.token_values(some, written, [Accepted(), Overlap()], run.teacher)
            for one, each in zip(written, values, strict=True):
                yield each[:, 0].tolist(), each[:, 1].tolist(), one.finished


def expected(accepted: Sequence[float], overlap: Sequence[float], finished: bool) -> Expected:
    """The expected outcome of a draft.

    `accepted`: for each token, the probability that it is accepted. `overlap`: the probability that
    any token drawn at its position is. `finished`: the last token ends the text.
    """
    reached, tested, kept = 1.0, 0.0, 0.0
    for itself, drawn in zip(accepted, overlap, strict=True):
        tested += reached
        kept += reached * drawn
        reached *= itself
    return Expected(tested, kept, kept + 1 - (reached if finished else 0.0))


def _context(row: Row, rng: np.random.Generator, longest: int) -> list[int] | None:
    """At most `longest` ids of a document that precede one of the row's predicted tokens."""
    ids, position = np.asarray(row["input_ids"]), np.asarray(row["position"])
    given = row.get("labels")
    labels = ids if given is None else np.asarray(given)
    places = np.flatnonzero((labels != -100) & (position > 0))
    if not len(places):
        return None
    at = int(rng.choice(places))
    begin = max(at - int(position[at]), at - longest)
    found: list[int] = ids[begin:at].tolist()
    return found


@hookimpl
def kdcore_evals() -> Sequence[type[Eval]]:
    """The eval `acceptance`."""
    return [Acceptance]
