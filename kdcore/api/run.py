"""A stage of a recipe, and the run of it that plugins get."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kdcore.api.options import iter_components, placed
from kdcore.api.train_options import RolloutOptions

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.api.component import Component
    from kdcore.api.data import Data, Rollout, Tokenizer
    from kdcore.api.loss import Loss, Term
    from kdcore.api.observers import Eval, Logger
    from kdcore.api.student import StudentOptions
    from kdcore.api.teacher import Teacher
    from kdcore.api.tokens import Selection
    from kdcore.api.train_options import ResourceOptions, TrainOptions
    from kdcore.data.batch import Row
    from kdcore.data.rows import RowDataset
    from kdcore.models.causal_lm import LanguageModel
    from kdcore.models.completions import Completion, Prompt, Sampling


Scope = Literal["step", "micro_batch"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """The components and options of one run. `recipe.build` makes a new one for each caller."""

    name: str  # "" where the recipe has no stages
    run_name: str  # "rho_qwen", or with stages "quickstart.teacher"
    table: dict[str, object]  # the merged recipe as written
    seed: int  # the recipe's
    student: StudentOptions  # `[student]`
    tokenizer: Tokenizer | None  # None: the student's own
    tokenizer_data: Data  # trains the tokenizer, if one is trained
    data: Data  # `[data]`
    teacher: Teacher | None  # `[teacher]`
    terms: Sequence[Term]  # each `[[loss]]`, in order
    selection: Selection | None  # `[selection]`
    scope: Scope  # within which the selection ranks tokens
    evals: Sequence[Eval]  # includes those of every run
    loggers: Sequence[Logger]  # includes those of every run
    train: TrainOptions  # `[train]`
    rollout: Rollout | None = None  # `[rollout]`
    writing: RolloutOptions = field(default_factory=RolloutOptions)  # the engine's part of it
    trusted: Sequence[str] = ()  # models whose remote code may run
    resources: ResourceOptions | None = None  # `[resources]`

    def components(self) -> list[Component]:
        """All components, each before its nested ones."""
        seen = dict.fromkeys(nested for one in self._direct() for nested in iter_components(one))
        return list(seen)

    def by_place(self) -> dict[str, Component]:
        """All components by their path in the recipe, such as `loss.0` or `teacher.members.1`."""
        found: dict[str, Component] = {}
        singles: dict[str, Component | None] = {
            "data": self.data,
            "teacher": self.teacher,
            "selection": self.selection,
            "rollout": self.rollout,
        }
        lists: dict[str, Sequence[Component]] = {
            "student.patch": self.student.patches,
            "loss": [term.loss for term in self.terms],
            "eval": self.evals,
            "log": self.loggers,
        }
        for place, single in singles.items():
            found |= placed(single, place) if single is not None else {}
        for place, several in lists.items():
            for n, one in enumerate(several):
                found |= placed(one, f"{place}.{n}")
        return found

    def _direct(self) -> Iterator[Component]:
        single = (self.tokenizer, self.tokenizer_data, self.data, self.teacher, self.selection)
        yield from (one for one in (*single, self.rollout) if one is not None)
        yield from self.student.patches
        yield from (term.loss for term in self.terms)
        yield from self.evals
        yield from self.loggers


class Run:
    """A running stage, as plugins see it. Read-only for plugins."""

    recipe: Stage  # components and options of the stage
    folder: Path  # the run folder
    device: torch.device  # this process's device
    process: int  # this process's rank, from 0
    processes: int  # the world size
    step: int  # optimizer steps done
    steps: int  # optimizer steps of the whole run
    tokens: int  # valid tokens trained on so far
    micro_batch: int  # rows per forward pass
    chunk: int  # tokens that the head and the losses process at a time
    vocabulary: int  # number of ids that student and teachers share; logits are cut to it
    objective: str  # the effective objective as a formula, as `kdcore plan` prints it
    scores: Mapping[str, float | str]  # results of the last evaluation
    reads_teacher: bool  # False: opened for evals that need no teacher, so none is loaded
    tokenizer: PreTrainedTokenizerBase  # the student's tokenizer
    language_model: LanguageModel  # the student, split into trunk and head
    autocast: Callable[[], AbstractContextManager[Any]]  # context manager of the training precision

    @property
    def seed(self) -> int:
        """The recipe's seed, from which all randomness derives."""
        return self.recipe.seed

    @property
    def main(self) -> bool:
        """Whether this is process 0, which writes files and prints."""
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
    def shares_calls(self) -> bool:
        """Whether a model is sharded, so that all processes must run it equally often."""
        return False

    def most(self, count: int) -> int:
        """The largest `count` of all processes where a model is sharded; else `count` itself.

        Every process calls it. Who has fewer calls of a sharded model to make fills up with batches
        without valid tokens.
        """
        return count

    @property
    def batch(self) -> int:
        """Rows per optimizer step over all processes; documents with `batch_documents`."""
        return self.recipe.train.drawn

    @property
    def documents_in_step(self) -> float:
        """Mean number of documents per optimizer step; 0 where unknown."""
        return 0.0

    @property
    def caches(self) -> Path:
        """The folder of teacher caches, shared by runs, next to the run folders."""
        return self.folder.parent / "caches"

    @property
    def epochs(self) -> float:
        """Passes over the training data; 0 where it is streamed."""
        rows = len(self.rows("train"))
        return self.steps * self.batch / rows if rows else 0.0

    @property
    def bytes_per_id(self) -> np.ndarray:
        """UTF-8 bytes of each id in running text, int32 [ids]; 0 for special tokens."""
        raise NotImplementedError

    def rows(self, split: str) -> Sequence[Row]:
        """The rows of "train" (first epoch), or the evaluated rows of "validation"."""
        raise NotImplementedError

    def ids(self, split: str, places: np.ndarray) -> np.ndarray:
        """The ids at these indices into the concatenation of a split's documents.

        For plugins that read documents other than in rows.
        """
        raise NotImplementedError

    def columns_fingerprint(self, split: str, names: Iterable[str]) -> str:
        """A short hash of the values of these columns in "train" or "validation"."""
        from kdcore.data.columns import fingerprint_of

        return fingerprint_of(self.laid(split).columns(), names)

    def laid(self, split: str, epoch: int = 0) -> RowDataset:
        """All rows of a split. Training rows may be a `Stream`, which has no length.

        Only those of the first and of the latest epoch stay in memory.
        """
        raise NotImplementedError

    def evaluate(
        self,
        rows: Sequence[Row],
        losses: Sequence[Loss],
        teacher: Teacher | None = None,
        *,
        by: str | None = None,
        keep_documents: bool = False,
    ) -> Mapping[str, float]:
        """Sums over the valid tokens of `rows`, in chunks, sharded over the processes.

        Keys: `tokens`, `bytes` (UTF-8 bytes of their text), `nll` (nats), each loss's name (`kl.2`
        for a second `kl`). With a teacher also `agreement` (tokens with the same argmax), and
        `known` where it may cover only some tokens: comparisons sum over these.
        `by` names a column: each sum is also given per value, as `nll/math` and `tokens/math`.
        With `keep_documents` a training run writes tokens, bytes and nats of each document into
        its folder, for `kdcore compare`.
        """
        raise NotImplementedError

    def log_likelihoods(self, rows: Sequence[Row], *, batch: int = 64) -> list[float]:
        """The student's log-probability of the labelled tokens of each row, in nats.

        Runs `batch` rows of similar length at a time. Every process gets all results.
        """
        raise NotImplementedError

    def sampling(self, rollout: Rollout) -> Sampling:
        """Sampling by a rollout's options, with the run's vocabulary and end-of-text ids."""
        raise NotImplementedError

    def prompts(self) -> list[Prompt]:
        """The prompts of all training rows of the first epoch, as `[rollout]` cuts them.

        For rollouts that generate ahead of training. Prompts of a step have other seeds.
        """
        raise NotImplementedError

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, sampling: Sampling | None = None
    ) -> list[Completion]:
        """`n` completions by the student per prompt, those of one prompt adjacent.

        `sampling` defaults to that of [rollout]. Runs on this process alone, one completion of
        every prompt at a time.
        """
        raise NotImplementedError

    def score(
        self, teacher: Teacher | None, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> list[float]:
        """A loaded teacher's log-probability of each completion given its prompt, in nats.

        None: the student's. Runs on this process alone, `micro_batch` completions at a time.
        """
        raise NotImplementedError

    def token_values(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        losses: Sequence[Loss],
        teacher: Teacher | None = None,
    ) -> list[Tensor]:
        """Values of losses at each token of each completion, [tokens, losses], on the CPU."""
        raise NotImplementedError

    def say(self, message: str) -> None:
        """Print a message once, on the terminal and in log.txt."""
        raise NotImplementedError
