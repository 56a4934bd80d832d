"""Generation and scoring on a rollout's own process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcore.data.collate import Collate
from kdcore.models.causal_lm import eval_mode
from kdcore.models.completions import Completion, Prompt, Sampling
from kdcore.models.decoding import sample
from kdcore.models.head import chunk_size, nll_from_logits
from kdcore.objective.losses import per_token
from kdcore.objective.teachers import read_nll, read_outputs
from kdcore.rollout.layout import WRITTEN, written_rows

if TYPE_CHECKING:
    from kdcore.api.loss import Loss
    from kdcore.api.run import Run
    from kdcore.api.teacher import Teacher
    from kdcore.data.batch import Batch, LogitsFn


def sample_student(
    run: Run, prompts: Sequence[Prompt], n: int, sampling: Sampling
) -> list[Completion]:
    """See `Run.sample`."""
    with eval_mode(run.student), run.autocast():
        rounds = [
            sample(run.language_model, [prompt.again(k) for prompt in prompts], sampling)
            for k in range(n)
        ]
    return [one for some in zip(*rounds, strict=True) for one in some]


def score(
    run: Run, teacher: Teacher | None, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[float]:
    """See `Run.score`."""
    found: list[float] = []
    for batch in _batches(run, prompts, completions):
        if teacher is not None:
            nll = read_nll(teacher, batch)
        else:
            nll = nll_from_logits(_student(run, batch), batch)
        sums = torch.zeros(len(batch.input_ids), dtype=torch.float64, device=run.device)
        values = nll(batch.valid, batch.labels[batch.valid]).double()
        sums.index_add_(0, batch.valid // batch.input_ids.shape[1], -values)
        found += sums.tolist()
    return found[: len(completions)]


def token_values(
    run: Run,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    losses: Sequence[Loss],
    teacher: Teacher | None,
) -> list[Tensor]:
    """See `Run.token_values`."""
    found: list[Tensor] = []
    for batch in _batches(run, prompts, completions):
        student = _student(run, batch)
        other = None if teacher is None else read_outputs(teacher, batch)
        size = chunk_size(batch.vocabulary, run.device)
        values = [torch.zeros(0, len(losses), device=run.device)]
        for at in torch.split(batch.valid, size):
            both = student(at), other and other(at)
            each = [per_token(loss, *both, batch.labels[at]) for loss in losses]
            values.append(torch.stack(each, 1))
        rows = batch.valid // batch.input_ids.shape[1]
        counts = torch.bincount(rows, minlength=len(batch.input_ids)).tolist()
        found += [each.cpu() for each in torch.split(torch.cat(values), counts)]
    return found[: len(completions)]


def _batches(
    run: Run, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> Iterator[Batch]:
    """One row per completion, in order; without gradient, the student in evaluation mode.

    With a sharded model, then empty batches, until every process has had as many.
    """
    pairs = zip(prompts, completions, strict=True)
    whole = [replace(one, prompt=prompt) for prompt, one in pairs]
    rows = written_rows([[one] for one in whole], run.data.block, "one")
    collate = Collate(WRITTEN, run.vocabulary, run.device)
    with eval_mode(run.student):
        for n in range(run.most(math.ceil(len(rows) / run.micro_batch))):
            yield collate(rows[n * run.micro_batch : (n + 1) * run.micro_batch])


def _student(run: Run, batch: Batch) -> LogitsFn:
    with run.autocast():
        states = run.language_model.states(batch)
    head = run.language_model.head()
    return lambda positions: head(states[positions])[:, : batch.vocabulary]
