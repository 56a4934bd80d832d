"""What writers may ask of a run on their own process: answers of the student, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from kdcore.data.collate import Collate
from kdcore.models.causal_lm import eval_mode
from kdcore.models.completions import Completion, Prompt, Sampling
from kdcore.models.decoding import sample
from kdcore.models.head import nll_from_logits
from kdcore.objective.teachers import read_nll
from kdcore.rollout.layout import WRITTEN, written_rows

if TYPE_CHECKING:
    from kdcore.api.contracts import Run, Teacher


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
    pairs = zip(prompts, completions, strict=True)
    whole = [replace(one, prompt=prompt) for prompt, one in pairs]
    rows = written_rows([[one] for one in whole], run.data.block, "one")
    collate = Collate(WRITTEN, run.vocabulary, run.device)
    found: list[float] = []
    with eval_mode(run.student), torch.no_grad():
        for at in range(0, len(rows), run.micro_batch):
            batch = collate(rows[at : at + run.micro_batch])
            if teacher is not None:
                nll = read_nll(teacher, batch)
            else:
                with run.autocast():
                    states = run.language_model.states(batch)
                head = run.language_model.head()
                nll = nll_from_logits(lambda p, h=head, s=states: h(s[p]), batch)  # type: ignore[misc]
            sums = torch.zeros(len(batch.input_ids), dtype=torch.float64, device=run.device)
            values = nll(batch.valid, batch.labels[batch.valid]).double()
            sums.index_add_(0, batch.valid // batch.input_ids.shape[1], -values)
            found += sums.tolist()
    return found
