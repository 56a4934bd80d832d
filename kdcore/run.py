"""One stage while it runs: what a plugin may ask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdcore.api import Data, Loss, Teacher
from kdcore.batch import Row
from kdcore.blame import blame, returned

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.language_model import LanguageModel
    from kdcore.recipe import Stage
    from kdcore.rows import LaidRows

_log = logging.getLogger("kdcore")


@dataclass(eq=False)
class Run:
    """A stage at work. Plugins read it; the engine alone writes."""

    recipe: Stage
    folder: Path
    device: torch.device
    process: int = 0
    processes: int = 1
    step: int = 0  # optimizer steps done
    steps: int = 0  # in the whole run
    tokens: int = 0  # valid tokens trained on so far
    micro_batch: int = 8
    chunk: int = 0  # tokens that head and losses see at a time
    vocabulary: int = 0  # ids that student and teachers share; logits are cut to these
    objective: str = ""  # the effective objective as a formula, as `kdcore plan` prints it
    scores: Mapping[str, float | str] = field(default_factory=dict)  # of the last evaluation
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    tokenizer: PreTrainedTokenizerBase = field(init=False)
    language_model: LanguageModel = field(init=False)
    _rows: dict[tuple[str, int], LaidRows] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The recipe's seed; everything drawn at random starts from it."""
        return self.recipe.seed

    @property
    def main(self) -> bool:
        """Whether this process writes and shows things."""
        return self.process == 0

    @property
    def student(self) -> PreTrainedModel:
        """The model in training."""
        return self.language_model.model

    @property
    def data(self) -> Data:
        """The data component."""
        return self.recipe.data

    @property
    def teacher(self) -> Teacher | None:
        """The teacher component, if the recipe has one."""
        return self.recipe.teacher

    @property
    def batch(self) -> int:
        """Rows in an optimizer step, over all processes."""
        return self.recipe.train.batch

    @property
    def caches(self) -> Path:
        """Where teacher caches lie that runs share: beside the runs."""
        return self.folder.parent / "caches"

    @property
    def epochs(self) -> float:
        """How often the run goes through the training rows; 0 where they are streamed."""
        rows = len(self.rows("train"))
        return self.steps * self.batch / rows if rows else 0.0

    @cached_property
    def bytes_per_id(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for in running text, int32 [ids]; special tokens 0."""
        from kdcore.vocabulary import bytes_per_id

        return bytes_per_id(self.tokenizer)

    def rows(self, split: str) -> Sequence[Row]:
        """The rows of "train" (of its first epoch), or the evaluated ones of "validation"."""
        if split == "train":
            return self.laid(split)
        from kdcore.batches import drawn

        rows = self.laid(split)
        wanted = self.recipe.train.eval_rows
        if wanted == "all" or wanted >= len(rows):
            return rows
        return rows.subset(drawn(len(rows), wanted, self.seed))

    def ids(self, split: str, places: np.ndarray) -> np.ndarray:
        """The ids of a split's documents at these indices, counted through all of them.

        For what reads documents otherwise than the rows lay them.
        """
        return self.laid(split).ids(places)

    def laid(self, split: str, epoch: int = 0) -> LaidRows:
        """All rows of a split; training rows may be a `Stream`, which knows none ahead.

        Only the last epoch's are held, besides the first's.
        """
        from kdcore.rows import as_rows
        from kdcore.streams import GivenStream

        key = (split, epoch if self.data.fresh_each_epoch else 0)
        if key not in self._rows:
            self._rows = {k: v for k, v in self._rows.items() if k[1] == 0}
            make = partial(self.data.make_rows, split, self.tokenizer, seed=self.seed, epoch=key[1])
            with blame(self.data, "make_rows"):
                made = make()
            given_by, options = f"data {self.data.name!r}", self.recipe.train
            if split == "train" and options.steps is not None and not hasattr(made, "__len__"):
                made = GivenStream(make, split, self.data.fingerprint(), given_by)
            at_most = None if options.eval_rows == "all" else options.eval_rows
            most = at_most if split != "train" else None
            if not (hasattr(made, "__iter__") or hasattr(made, "__getitem__")):
                raise returned(self.data, "make_rows", type(made).__name__, "rows")
            with blame(self.data, "make_rows"):  # rows may come one by one
                self._rows[key] = as_rows(made, split, given_by=given_by, at_most=most)
        return self._rows[key]

    def evaluate(
        self, rows: Sequence[Row], losses: Sequence[Loss], teacher: Teacher | None = None
    ) -> Mapping[str, float]:
        """Sums over the valid tokens of `rows`, in chunks, sharded over the processes.

        Keys: `tokens`, `bytes` (of text that these tokens stand for), `nll` (nats), each loss's
        name (a second `kl` is `kl.2`), and with a teacher `agreement` (tokens that both rank
        first).
        """
        from kdcore.evaluate import evaluate

        return evaluate(self, rows, losses, teacher)

    def log_likelihoods(self, rows: Sequence[Row], *, batch: int = 64) -> list[float]:
        """The log-probability that the student gives to each row's trained tokens, in nats.

        `batch` rows run at a time, of like lengths; every process gets all results.
        """
        from kdcore.evaluate import log_likelihoods

        return log_likelihoods(self, rows, batch)

    def state(self) -> dict[str, object]:
        """What its checkpoints hold of it, besides weights and random states."""
        kept = ("tokens", "micro_batch", "chunk", "vocabulary", "steps", "scores")
        return {key: getattr(self, key) for key in kept}

    def say(self, message: str) -> None:
        """Tell the user something, once: on the terminal and in log.txt."""
        if self.main:
            _log.info(message)
