"""The state of a running stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kdcore.api.data import Rollout
from kdcore.api.loss import Loss
from kdcore.api.run import Run
from kdcore.api.teacher import Teacher
from kdcore.data.batch import Row
from kdcore.data.rows import Documents
from kdcore.data.sampler import Drawable, Order, StreamedRows, TrainingRows
from kdcore.data.streaming import Stream
from kdcore.distributed.disks import SHARED, Disk
from kdcore.errors import RunError, UsageError
from kdcore.guard import plugin_errors, wrong_return
from kdcore.models.completions import Completion, Prompt, Sampling
from kdcore.objective.teachers import teachers_in
from kdcore.sharding.turns import largest
from kdcore.training.best import Best

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from kdcore.api.run import Stage
    from kdcore.data.rows import RowDataset
    from kdcore.document_losses import DocumentLosses
    from kdcore.models.causal_lm import LanguageModel
    from kdcore.objective.compiled_losses import PerToken


_log = logging.getLogger("kdcore")


@dataclass(eq=False)
class RunState(Run):
    """The engine's implementation of `Run`."""

    recipe: Stage
    folder: Path
    device: torch.device
    disk: Disk = SHARED  # of the folder
    process: int = 0
    processes: int = 1
    step: int = 0  # optimizer steps done
    steps: int = 0  # optimizer steps of the whole run
    tokens: int = 0  # valid tokens trained on so far
    micro_batch: int = 8
    chunk: int = 0  # tokens that the head and the losses process at a time
    vocabulary: int = 0  # number of ids that student and teachers share; logits are cut to it
    objective: str = ""  # the effective objective as a formula, as `kdcore plan` prints it
    scores: Mapping[str, float | str] = field(default_factory=dict)  # of the last evaluation
    documents: DocumentLosses | None = None  # its values by document, if kept
    best: Best | None = None  # the best step, if the recipe keeps it
    reads_teacher: bool = True
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    compiled: Callable[[Sequence[Loss]], PerToken] | None = None  # in evaluations of training
    tokenizer: PreTrainedTokenizerBase = field(init=False)
    language_model: LanguageModel = field(init=False)
    _rows: dict[tuple[str, int], RowDataset] = field(default_factory=dict)
    _documents: Documents | None = None  # of the rows that were last drawn from

    @cached_property
    def bytes_per_id(self) -> np.ndarray:
        """UTF-8 bytes of each id in running text, int32 [ids]; 0 for special tokens."""
        from kdcore.models.vocabulary import bytes_per_id

        return bytes_per_id(self.tokenizer)

    def rows(self, split: str) -> Sequence[Row]:
        """See `Run.rows`."""
        if split == "train":
            return self.laid(split)
        from kdcore.data.sampler import random_subset

        rows = self.laid(split)
        eval_rows = self.recipe.train.eval_rows
        if eval_rows == "all" or eval_rows >= len(rows):
            return rows
        return rows.subset(random_subset(len(rows), eval_rows, self.recipe.train.eval_seed))

    def ids(self, split: str, places: np.ndarray) -> np.ndarray:
        """See `Run.ids`."""
        return self.laid(split).ids(places)

    @property
    def epochs(self) -> float:
        """Passes over the training data; 0 where it is streamed."""
        count = self.drawn_in_epoch()
        return self.steps * self.batch / count if count else 0.0

    @property
    def documents_in_step(self) -> float:
        """Mean number of documents per optimizer step; 0 where unknown."""
        if self.recipe.train.batch_documents is not None:
            return float(self.batch)
        rows = self.laid("train")
        return len(rows.split.lengths) / len(rows) * self.batch if len(rows) else 0.0

    def drawn_in_epoch(self) -> int:
        """The number of training rows of an epoch, or of documents where steps draw these."""
        return len(self.drawable())

    def drawable(self, epoch: int = 0) -> Drawable:
        """What the steps of an epoch draw from: the training rows, or their documents."""
        rows = self.laid("train", epoch)
        # For a stream, each window is drawn from separately.
        if self.recipe.train.batch_documents is None or isinstance(rows, Stream):
            return rows
        if self._documents is None or self._documents.rows is not rows:
            self._documents = Documents(rows)
        return self._documents

    def laid(self, split: str, epoch: int = 0) -> RowDataset:
        """See `Run.laid`."""
        from kdcore.data.given import GivenStream, as_rows

        key = (split, epoch if self.data.fresh_each_epoch else 0)
        if key not in self._rows:
            self._rows = {k: v for k, v in self._rows.items() if k[1] == 0}
            seed = self.seed if split == "train" else self.recipe.train.eval_seed
            make = partial(self.data.make_rows, split, self.tokenizer, seed=seed, epoch=key[1])
            with plugin_errors(self.data, "make_rows"):
                rows = make()
            given_by, options = f"data {self.data.name!r}", self.recipe.train
            if split == "train" and options.steps is not None and not hasattr(rows, "__len__"):
                rows = GivenStream(make, split, self.data.fingerprint(), given_by)
            at_most = None if options.eval_rows == "all" else options.eval_rows
            limit = at_most if split != "train" else None
            if not (hasattr(rows, "__iter__") or hasattr(rows, "__getitem__")):
                raise wrong_return(self.data, "make_rows", type(rows).__name__, "rows")
            with plugin_errors(self.data, "make_rows"):  # rows may be generated lazily
                self._rows[key] = as_rows(rows, split, given_by=given_by, at_most=limit)
        return self._rows[key]

    def evaluate(
        self,
        rows: Sequence[Row],
        losses: Sequence[Loss],
        teacher: Teacher | None = None,
        *,
        by: str | None = None,
        keep_documents: bool = False,
    ) -> Mapping[str, float]:
        """See `Run.evaluate`."""
        from kdcore.training.evaluation import DocumentSums, evaluate

        compiled = self.compiled(losses) if self.compiled and losses else None
        if not keep_documents:
            return evaluate(self, rows, losses, teacher, by, compiled=compiled)
        count = len(rows.split.lengths)  # type: ignore[attr-defined]
        documents = DocumentSums(count, self.device)
        sums = evaluate(self, rows, losses, teacher, by, documents, compiled)
        self.documents = documents.found()
        return sums

    def log_likelihoods(self, rows: Sequence[Row], *, batch: int = 64) -> list[float]:
        """See `Run.log_likelihoods`."""
        from kdcore.training.evaluation import log_likelihoods

        return log_likelihoods(self, rows, batch)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end a text: those of the tokenizer, of the student, and learned from the
        data.

        Raises RunError if there are none.
        """
        from kdcore.models.generation import learned_stop_tokens

        rows = self.laid("train")
        first = rows.first_window() if isinstance(rows, Stream) else rows
        config = self.student.generation_config
        own = config.eos_token_id if config is not None else None
        found = {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id} - {None}
        found |= learned_stop_tokens(first, self.tokenizer)
        if not any(each < self.vocabulary for each in found):
            raise RunError(
                "the tokenizer has no end-of-text token (eos), so the student would "
                "never end its answers"
            )
        return frozenset(found)

    def sampling(self, rollout: Rollout) -> Sampling:
        """Sampling by a rollout's options, with the run's vocabulary and end-of-text ids."""
        return Sampling(
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            ends=self.ends,
            vocabulary=self.vocabulary,
        )

    def prompts(self) -> list[Prompt]:
        """See `Run.prompts`."""
        from kdcore.rollout.prompts import cutter_of

        cutter, rows = cutter_of(self.recipe), self.laid("train")
        return [one for n in range(len(rows)) for one in cutter.prompts(rows[n], 1, n)]

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, sampling: Sampling | None = None
    ) -> list[Completion]:
        """`n` completions by the student per prompt, those of one prompt adjacent."""
        from kdcore.rollout.local import sample_student

        if sampling is None:
            if self.recipe.rollout is None:
                raise UsageError("the recipe has no [rollout]: give `sampling`")
            sampling = self.sampling(self.recipe.rollout)
        return sample_student(self, prompts, n, sampling)

    def score(
        self, teacher: Teacher | None, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> list[float]:
        """The log-probability of each completion given its prompt, in nats; None: the student's."""
        from kdcore.rollout.local import score

        return score(self, teacher, prompts, completions)

    def token_values(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        losses: Sequence[Loss],
        teacher: Teacher | None = None,
    ) -> list[Tensor]:
        """See `Run.token_values`."""
        from kdcore.rollout.local import token_values

        return token_values(self, prompts, completions, losses, teacher)

    def state_dict(self) -> dict[str, object]:
        """The part of its checkpoints other than weights and random states."""
        kept = ("tokens", "micro_batch", "chunk", "vocabulary", "steps", "scores")
        best = {} if self.best is None else {"best": asdict(self.best)}
        return {key: getattr(self, key) for key in kept} | best

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the parts of a checkpoint that setup does not recompute."""
        self.step, self.tokens = state["step"], state["tokens"]
        self.scores = state.get("scores", {})
        self.best = Best(**state["best"]) if state.get("best") else None
        self.chunk = state.get("chunk", self.chunk)

    @cached_property
    def shares_calls(self) -> bool:
        """Whether some model is sharded, so that processes run it together."""
        if self.processes == 1:
            return False
        if self.recipe.train.shard == "full":
            return True
        return any(each.is_sharded() for each in teachers_in(self.recipe.components()))

    def most(self, count: int) -> int:
        """See `Run.most`."""
        return largest(count) if self.shares_calls else count

    def say(self, message: str) -> None:
        """Print a message once, on the terminal and in log.txt."""
        if self.main:
            _log.info(message)


def training_rows(run: RunState, *, whole: bool = False) -> TrainingRows | StreamedRows:
    """The training rows of this process, or of the whole step.

    A stream needs to know where to end, and says what its order is without that.
    """
    rows, options = run.laid("train"), run.recipe.train
    mine = (0, 1) if whole else (run.process, run.processes)
    if not isinstance(rows, Stream):
        order = Order(run.drawn_in_epoch(), options.drawn, run.seed)
        return TrainingRows(run.drawable, order, *mine)
    if options.steps is None:
        raise RunError(
            f"the data {run.data.name!r} is streamed, so its length is unknown: set "
            "train.steps instead of epochs or tokens"
        )
    if "epoch" in (options.save_every, options.eval_every):
        run.say(
            "the training data is streamed, so the end of an epoch is unknown: evaluated and "
            "saved at the end, or set train.eval_every and train.save_every to steps"
        )
    return StreamedRows(
        lambda epoch: cast(Stream, run.laid("train", epoch)),
        options.drawn,
        run.seed,
        *mine,
        workers=workers_of(run),
        drawn=Documents if options.batch_documents else lambda rows: rows,
    )


def workers_of(run: RunState) -> int:
    """On a CPU, threads that prepare rows take cores from training."""
    workers = run.recipe.train.workers
    return int(run.device.type == "cuda") if workers == "auto" else workers
