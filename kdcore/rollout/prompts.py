"""Which rows are generated, and the prompts cut from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdcore.data.batch import Row
from kdcore.data.collate import NOT_TRAINED
from kdcore.data.columns import columns_at
from kdcore.models.completions import Prompt, derived_seed

if TYPE_CHECKING:
    from kdcore.api.run import Stage

_DRAW, _WRITE = 0x5A3E, 0x3217E  # random streams


@dataclass(frozen=True)
class PromptCutter:
    """Cuts prompts from rows. Random numbers depend only on the row's position in the run."""

    seed: int
    prompt_tokens: int  # for documents without a prompt of their own
    longest: int  # longer prompts keep their last tokens

    def is_written(self, step: int, place: int, share: float) -> bool:
        """Whether the row at this position of a step is generated."""
        if share >= 1:
            return True
        return float(np.random.default_rng([self.seed, _DRAW, step, place]).random()) < share

    def prompts(self, row: Row, step: int, place: int) -> list[Prompt]:
        """One prompt per learned answer of a dialogue, and one per piece of text."""
        return [
            Prompt(
                ids=tuple(row["input_ids"][max(begin, at - self.longest) : at].tolist()),
                seed=derived_seed(self.seed, _WRITE, step, place, exchange),
                document=int(row["document"][begin]),
                columns=columns_at(row, begin),
                reference=tuple(row["input_ids"][at:end].tolist()),
                exchange=which,
            )
            for exchange, (begin, at, end, which) in enumerate(self._answers(row))
        ]

    def cut(self, row: Row) -> int:
        """The number of prompts that are truncated at the start."""
        return sum(at - begin > self.longest for begin, at, *_ in self._answers(row))

    def _answers(self, row: Row) -> Iterator[tuple[int, int, int, int]]:
        """Where a piece begins, where an answer in it begins and ends, and its `exchange`."""
        position, labels = np.asarray(row["position"]), row.get("labels")
        borders = np.flatnonzero(np.diff(position) != 1) + 1
        ends = [*borders.tolist(), len(position)]
        for begin, end in zip([0, *borders.tolist()], ends, strict=True):
            if labels is None or self._is_text(np.asarray(labels)[begin:end]):
                at = begin + min(self.prompt_tokens, end - begin - 1)
                if at > begin:
                    yield begin, at, end, 0
                continue
            found = stretches(np.asarray(labels)[begin:end] != NOT_TRAINED)
            yield from (
                (begin, begin + first, begin + last, n - len(found))
                for n, (first, last) in enumerate(found)
                if first  # pieces that begin inside an answer are cut within it
            )

    @staticmethod
    def _is_text(labels: np.ndarray) -> bool:
        return bool((labels != NOT_TRAINED).all())


def cutter_of(stage: Stage) -> PromptCutter:
    """The cutter of a stage's tables."""
    assert stage.rollout is not None, "only stages that write cut prompts"
    longest = stage.data.block - stage.rollout.max_new_tokens
    return PromptCutter(stage.seed, stage.writing.prompt_tokens, longest)


def stretches(trained: np.ndarray) -> list[tuple[int, int]]:
    """The start and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
