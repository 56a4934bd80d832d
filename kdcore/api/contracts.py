"""The contracts: base classes that plugins implement, and objects that the engine gives them.

Components never mask, reduce, chunk or move tensors between devices; the engine does all of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    cast,
)

from pydantic import Field, field_validator

from kdcore.api.component import Component, component
from kdcore.api.options import as_call, iter_components, names_on_hub, of_options, placed
from kdcore.api.schedule import Schedule, Scheduled
from kdcore.api.train_options import NotNegative, On, RolloutOptions, TrainOptions, _options
from kdcore.errors import UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.api.train_options import ResourceOptions
    from kdcore.data.batch import (
        Batch,
        LogitsFn,
        OwnVocabulary,
        Row,
        Rows,
        StatesFn,
        TeacherOutputs,
    )
    from kdcore.data.rows import RowDataset
    from kdcore.data.where import Where
    from kdcore.models.causal_lm import LanguageModel
    from kdcore.models.completions import Completion, Prompt, Sampling
    from kdcore.models.decoding import NextTokens


def _text_of(document: str | Row) -> str | None:
    return document if isinstance(document, str) else document.get("text")


@component
class Data(Component):
    """Text for training and validation, arranged in rows of at most `block` tokens."""

    component_kind: ClassVar[str] = "data"
    block: int = 512
    rows: Literal["pack", "chunk", "one"] = "pack"
    cut: Literal["left", "right", "split"] = "right"
    bos: Annotated[
        Literal["auto"] | bool, Field(description="begins a document; auto: as the tokenizer does")
    ] = "auto"
    eos: bool = True
    special_tokens: Annotated[
        Literal["text", "parse"],
        Field(description="what those are that a document spells out: text, or tokens"),
    ] = "text"
    fresh_each_epoch: ClassVar[bool] = False
    streams: ClassVar[bool] = False  # True: training rows come one by one, uncounted
    asked_columns: ClassVar[frozenset[str]] = frozenset()  # the recipe's `optional_columns`

    def texts(self, split: str) -> Iterable[str]:
        """The texts of "train" or "validation", in order. Tokenizers train on them too.

        Defaults to the texts of `documents`, where that is overridden.
        """
        if type(self).documents is Data.documents:
            raise NotImplementedError
        return (text for text in map(_text_of, self.documents(split)) if text is not None)

    def documents(self, split: str) -> Iterable[str | Row]:
        """The documents of a split with their columns. Defaults to `texts`, without columns.

        A document is a text, or a mapping with `text`, or with `input_ids` that are used unchanged,
        and `columns`: name -> text or number. Dropping a document drops its columns.
        """
        return self.texts(split)

    def column_names(self) -> Sequence[str] | None:
        """The columns that documents may have; None: unknown until the documents are read.

        Defaults to none where neither `documents` nor `make_rows` is overridden.
        """
        own = (type(self).documents, type(self).make_rows)
        return () if own == (Data.documents, Data.make_rows) else None

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """The rows of a split. By default tokenises the texts (cached on disk) and arranges them
        according to the option `rows`.

        "pack" puts several whole documents into a row, isolated from each other; longer ones are
        cut into isolated pieces. "chunk" cuts the concatenated split into rows. "one" gives each
        document a row, and cuts long ones at `cut`.
        """
        from kdcore.data.rows import pack_texts

        return pack_texts(self, split, tokenizer)

    def fingerprint(self) -> str:
        """Name and options; `bos` and `special_tokens` only with values other than the default."""
        chosen = {"bos": self.bos != "auto", "special_tokens": self.special_tokens != "text"}
        return of_options(self, without=[name for name, is_ in chosen.items() if not is_])

    def names_on_hub(self) -> Iterable[str]:
        """The hub data sets that it reads, for the model card. Defaults to those in its options."""
        return names_on_hub(self)


class Tokenizer(Component):
    """The source of the student's tokenizer."""

    component_kind: ClassVar[str] = "tokenizer"

    def load(self, run: Run, data: Data) -> PreTrainedTokenizerBase:
        """Load or train it. The run folder keeps the result; a resumed run does not call this."""
        raise NotImplementedError


class Teacher(Component):
    """A distribution over the next token, from one model or several, live or cached."""

    component_kind: ClassVar[str] = "teacher"
    loads_members: ClassVar[bool] = False  # True: loads its nested teachers itself
    own_tokens: ClassVar[bool] = False  # True: nested teachers read other ids

    def load(self, run: Run) -> None:
        """Load the weights onto `run.device`, in evaluation mode. Called once, also when nested."""

    def moves(self) -> bool:
        """Whether `to_host` and `to_device` work, so that several teachers can share the device."""
        return False

    def is_sharded(self) -> bool:
        """Whether several processes divide its weights between them, and run it together.

        Every process must then read the same number of batches, in the same order; see `Run.most`.
        A teacher with nested ones is, if any of them is.
        """
        nested = (each for each in iter_components(self) if each is not self)
        return any(each.is_sharded() for each in nested if isinstance(each, Teacher))

    def to_host(self) -> None:
        """Move the trunk's weights off the device. Results of earlier `read` calls stay valid.

        May be called before `load`, which then leaves the weights on the host.
        """
        raise NotImplementedError

    def to_device(self) -> None:
        """Move them back."""
        raise NotImplementedError

    def takes_turns(self) -> bool:
        """Whether its nested teachers' trunks occupy the device one after another."""
        return False

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer it was trained with; None: the student's. Called before `load`."""
        return None

    def gives_logits(self) -> bool:
        """Whether `read` works. False for a teacher that provides likelihoods only."""
        return True

    def ids_known(self) -> int | None:
        """How many ids `read` covers at each position, as `SparseLogits`; None: all, as logits."""
        return None

    def knows_others_at(self, temperature: float) -> bool | None:
        """Whether its `SparseLogits` give the mass of all other ids at this temperature.

        None, the default at any temperature other than 1: unknown. Losses then temper the masses of
        temperature 1, which is a different objective; the run warns about it.
        """
        return True if temperature == 1 else None

    def warnings(self, recipe: Stage, caches: Path) -> Iterable[str]:
        """What a user should know before a run, one sentence each, for `kdcore plan`.

        `caches` is the folder of teacher caches; it may not exist yet. Must not load anything.
        """
        return ()

    def is_estimate(self) -> bool:
        """Whether `read` returns random, unbiased estimates of its probabilities.

        Only losses that are `linear_in_teacher` accept them; other losses, selections and evals
        reject such a teacher.
        """
        return False

    def gives_losses(self) -> bool:
        """Whether `nll` works. By default it does, unless `read` covers only some ids."""
        return self.ids_known() is None

    def architecture(self, device: torch.device) -> PretrainedConfig | None:
        """The config of its model, without weights, for `kdcore plan`; None where it has none.

        `dtype` is that of the weights on the device. Nested teachers report their own.
        """
        return None

    def known(self, batch: Batch) -> Tensor | None:
        """Which tokens of `batch.valid` it covers, bool [valid]; None: all of them.

        Called before `read`; must not run a forward pass. Terms that need the teacher see and count
        only these tokens; at others `read` may return any finite values.
        """
        return None

    def own_vocabulary(self, batch: Batch) -> OwnVocabulary | None:
        """Its distribution over its own ids, for losses that use it. Must not run a forward pass.

        None, the default: its ids are the student's, and each token that it covers is a span.
        """
        return None

    def knows_all(self) -> bool:
        """Whether it covers every token. Defaults to True where `known` is not overridden."""
        return type(self).known is Teacher.known

    def bytes_per_token(self) -> float:
        """Bytes that it stores on disk per token of the training data, for `kdcore plan`."""
        return 0

    def read(self, batch: Batch) -> TeacherOutputs:
        """Run the trunk once over the batch. Returns a function from flat positions to logits, or
        to `SparseLogits` where `ids_known` is not None.

        Callers, including nesting teachers, use `kdcore.read(teacher, batch)`, which checks the
        result and cuts it to the shared vocabulary.
        """
        raise NotImplementedError

    def writes(self) -> bool:
        """Whether `generate` works."""
        return False

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[Completion]:
        """One completion per prompt, in order, each with `source` "teacher".

        Only ids below `sampling.vocabulary`. The same prompts give the same completions.
        """
        raise UsageError(f"the teacher {self.name!r} cannot write: it only reads what others wrote")

    def next_tokens(self, rows: Sequence[Sequence[int]], vocabulary: int) -> NextTokens:
        """Scores of the token after each of these rows of ids, which grow by one token at a time.

        Logits of the ids below `vocabulary`, without gradient, in the teacher's precision. For
        generation by several models together.
        """
        raise UsageError(f"the teacher {self.name!r} does not tell its next token: it cannot write")

    def tells_next_tokens(self) -> bool:
        """Whether `next_tokens` works. Defaults to whether it is overridden."""
        return type(self).next_tokens is not Teacher.next_tokens

    def parts(self, batch: Batch) -> Sequence[tuple[float, TeacherOutputs]] | None:
        """Weights and outputs of several teachers: a loss's value is the weighted sum over them.

        None, the default: losses use `read`. Everything else, such as evals and likelihoods, always
        uses `read`.
        """
        return None

    def gives_parts(self) -> bool:
        """Whether `parts` returns any. Defaults to whether it is overridden."""
        return type(self).parts is not Teacher.parts

    def gives_states(self) -> bool:
        """Whether `read_states` works. Defaults to whether it is overridden."""
        return type(self).read_states is not Teacher.read_states

    def layer_sizes(self) -> Sequence[int]:
        """The width of each hidden state, from the embeddings up. Called after `load`."""
        raise NotImplementedError

    def read_states(self, batch: Batch, layers: Sequence[int]) -> tuple[TeacherOutputs, StatesFn]:
        """As `read`, together with the hidden states of these layers, in one pass of the trunk.

        Layers are indexed as in transformers' `hidden_states`: 0 is the embeddings, -1 the output
        of the final norm.
        """
        raise UsageError(f"the teacher {self.name!r} does not show its hidden states")

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """Flat positions, labels [n] -> negative log-likelihoods [n]. Defaults to using `read`."""
        from kdcore.models.head import nll_from_logits

        known = self.ids_known()
        if known is not None:
            raise UsageError(
                f"teacher {self.name!r} knows {known} ids of each position only, and gives no "
                "likelihoods of all labels"
            )
        return nll_from_logits(cast("LogitsFn", self.read(batch)), batch)


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


class PreparedLoss(Loss):
    """A loss whose value at a token depends on more than that token, such as on a whole sequence.

    `prepare` sees the whole optimizer step, once and without gradient. A sequence-level objective
    becomes a coefficient per token: the gradient of f(sum log q) is f'(sum log q) times the sum of
    the tokens' gradients of log q.
    """

    needs_samples: ClassVar[bool] = False  # True: requires tokens sampled from the student's own q
    only_prepared: ClassVar[bool] = False  # True: `per_token_prepared` gets no teacher logits

    def prepare(self, tokens: Tokens) -> Tensor:
        """Floats for each of this process's valid tokens, [n] or [n, k] with the same k and dtype
        in every step. Runs after the selection, whatever its scope.
        """
        raise NotImplementedError

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """As `per_token`, with the rows of `prepared` for these tokens."""
        raise NotImplementedError

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Raises UsageError: the value depends on `prepare`, which needs a whole step."""
        raise UsageError(
            f"loss {self.name!r} is prepared over a whole optimizer step: it can be a [[loss]], "
            "and neither a score of a selection nor an eval"
        )


class Selection(Component):
    """Chooses the tokens of an optimizer step to train on."""

    component_kind: ClassVar[str] = "selection"

    def keep(self, tokens: Tokens) -> Tensor:
        """A bool for each of this process's valid tokens [n], or floats >= 0: token weights.

        Called without gradient. A term with `on = "kept"` is the weighted mean, divided by the sum
        of the weights; `on = "dropped"` sees the tokens of weight 0.
        """
        raise NotImplementedError

    def needs_teacher(self) -> bool:
        """Whether `keep` uses the run's teacher; teachers passed as options do not count."""
        return False


@component
class Rollout(Component):
    """`[rollout]`: generates completions for the share of rows that trains on generated text."""

    component_kind: ClassVar[str] = "rollout"
    max_new_tokens: Annotated[int, Field(ge=1, description="of an answer; longer ones are cut")] = (
        128
    )
    temperature: Annotated[NotNegative, Field(description="0 takes the likeliest token")] = 1.0
    top_k: Annotated[int, Field(ge=0, description="only the k likeliest; 0: all")] = 0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="only the likeliest that have this much together")
    ] = 1.0

    def generate(
        self, run: Run, prompts: Sequence[Prompt]
    ) -> Sequence[Completion | Sequence[Completion]]:
        """One completion per prompt, in order, or a sequence of completions for a prompt.

        Called between steps, for a group of prompts on one process: without gradient, the student
        in evaluation mode. Draw from each prompt's seed, so that neither the number of processes
        nor a restart changes the result. Completions without ids are dropped.
        """
        raise NotImplementedError

    def generated(self, run: Run, step: int, completions: Sequence[Completion]) -> None:
        """Receives all completions of a step before it is trained on, the same on every process.

        State (`state_dict`) built only from these is identical on every process.
        """

    def needs_teacher(self) -> bool:
        """Whether `generate` uses the run's teacher; teachers passed as options do not count."""
        return False


class Patch(Component):
    """A change to a fresh student: initialisation, adapters, kernels."""

    component_kind: ClassVar[str] = "patch"

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Called once, before training and before a checkpoint is loaded."""
        raise NotImplementedError

    def finish(self, model: PreTrainedModel) -> PreTrainedModel:
        """Called before the final save, on every process, such as to merge adapters.

        The model it returns replaces the run's student. Does nothing by default.
        """
        return model


class Eval(Component):
    """Scores of the student, numbers or texts, measured during and after training."""

    component_kind: ClassVar[str] = "eval"
    always: ClassVar[bool] = False  # used by every run, unless its plugin is blocked
    needs_teacher: ClassVar[bool] = False

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """Scores by name, logged as `eval/<name>`. Every process calls it and returns the same."""
        raise NotImplementedError


class Logger(Component):
    """Event hooks as methods, each with `@hookimpl`. A logger that raises is disabled.

    RunError ends the run instead: for a logger whose records must not be lost.
    """

    component_kind: ClassVar[str] = "logger"
    always: ClassVar[bool] = False  # used by every run, unless its plugin is blocked


@_options
class StudentOptions:
    """`[student]`: a model to load, or the config of a freshly initialised one."""

    model: Annotated[str, Field(min_length=1)] | None = None
    config: dict[str, object] | None = None
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    attention: str | None = None
    balance: Literal["config", "none"] = "config"
    patch: list[Patch] = Field(default_factory=list)

    @field_validator("config")
    @classmethod
    def _of_a_type(cls, config: dict[str, object] | None) -> dict[str, object] | None:
        if config is not None and not isinstance(config.get("model_type"), str):
            raise ValueError('config needs model_type, such as model_type = "llama"')
        return config

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The patches of the fresh student, in order."""
        return tuple(self.patch)


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


class Tokens:
    """This process's valid tokens of an optimizer step [n]. Lazy: unused values cost nothing.

    Tokens are in the order of the step's rows, however these are split into micro-batches.
    """

    step: int  # the optimizer step, from 1

    @property
    def labels(self) -> Tensor:
        """The id that each token's position predicts, int64 [n]."""
        raise NotImplementedError

    @property
    def row(self) -> Tensor:
        """The index of each token's row in the optimizer step, int64 [n]."""
        raise NotImplementedError

    @property
    def position(self) -> Tensor:
        """The index of the predicting token in its row, int64 [n]."""
        raise NotImplementedError

    @property
    def document(self) -> Tensor:
        """The index of each token's document in the split, int64 [n]."""
        raise NotImplementedError

    def column(self, name: str) -> Tensor:
        """The value of a column for the document of each predicted token [n].

        Numbers are float64, NaN where missing. Texts are int64 indices into `categories(name)`, -1
        where missing. "source" is who wrote the document, by default "data". Collective: every
        process must request the same columns.
        """
        raise NotImplementedError

    def categories(self, name: str) -> Sequence[str]:
        """The distinct texts of a column in this step, all processes, sorted; [] if numeric."""
        raise NotImplementedError

    @property
    def prompt(self) -> Tensor:
        """The prompt of each token, int64 [n]: equal for all completions of one rollout prompt.

        For tokens of data it is their document.
        """
        raise NotImplementedError

    def seen(self, loss: Loss) -> Tensor:
        """Which tokens the term of this loss sees after the selection, bool [n]."""
        raise NotImplementedError

    def count(self, loss: Loss) -> Tensor:
        """The denominator of its term over the whole step and all processes, a scalar."""
        raise NotImplementedError

    def by_document(self, values: Tensor) -> Tensor:
        """The sum of `values` over each token's document, over all processes, float64 [n]."""
        raise NotImplementedError

    def by_row(self, values: Tensor) -> Tensor:
        """The sum of `values` over each token's row in the step, float64 [n]."""
        raise NotImplementedError

    def student_nll(self) -> Tensor:
        """The student's negative log-likelihood of each label, in nats [n]."""
        raise NotImplementedError

    def old_log_probs(self) -> Tensor:
        """The log-probability of each label under its behaviour policy, when drawn, float64 [n].

        In nats, at temperature 1 over the shared ids, whatever temperature, top_k and top_p it was
        sampled with and however many steps ago. NaN where not recorded, as for tokens of data. A
        loss that is only valid on sampled tokens also sets `needs_samples`.
        """
        raise NotImplementedError

    def nll(self, teacher: Teacher | None = None) -> Tensor:
        """The negative log-likelihood of each label by a teacher (default: the run's), nats [n]."""
        raise NotImplementedError

    def score(
        self, loss: Loss, teacher: Teacher | None = None, prepared: Tensor | None = None
    ) -> Tensor:
        """The values of any loss [n], computed in chunks without gradient.

        `prepared` [n, ...] is the extra input of a `PreparedLoss`.
        """
        raise NotImplementedError

    def spans(self) -> Tensor:
        """The index of the span of text, shared with the run's teacher, of each token, int64 [n].

        Equal numbers are one span, on this process; -1: no span. Where student and teacher share
        their ids, each token that the teacher covers is a span.
        """
        raise NotImplementedError

    def span_nll(self) -> Tensor:
        """Where a span begins, the teacher's nll of its first token in the span and the sum over
        its later tokens, in nats [n, 2]; undefined elsewhere.
        """
        raise NotImplementedError

    def shared_ids(self) -> tuple[Tensor, Tensor]:
        """Ids of the same text in the student's and the teacher's vocabulary, int64 [m] each."""
        raise NotImplementedError

    def top(self, scores: Tensor, share: Scheduled) -> Tensor:
        """The ceil(share * N) highest scores over all processes, bool [n].

        N is the number of valid tokens in the step. Ties go to the earlier token; NaN is never
        kept.
        """
        raise NotImplementedError

    def over_step(self, values: Tensor) -> Tensor:
        """The values of the tokens of all processes, in the order of the step [N]."""
        raise NotImplementedError

    def random(self) -> Tensor:
        """A uniform number in [0, 1) for each token, from seed, step, row and position [n]."""
        raise NotImplementedError
