"""The contracts: what a plugin author writes, and what the engine hands over.

A component does no masking, reducing, chunking or moving of tensors between devices: that is the
engine's.
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
    """Text for training and validation, laid in rows of at most `block` tokens."""

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
    streams: ClassVar[bool] = False  # True: training rows come one by one, and nobody counts them
    asked_columns: ClassVar[frozenset[str]] = frozenset()  # the recipe's `optional_columns`

    def texts(self, split: str) -> Iterable[str]:
        """The documents of "train" or "validation", in order; tokenizers train on them too.

        By default the texts of `documents`, where that is overridden.
        """
        if type(self).documents is Data.documents:
            raise NotImplementedError
        return (text for text in map(_text_of, self.documents(split)) if text is not None)

    def documents(self, split: str) -> Iterable[str | Row]:
        """The documents of a split with what is known of each: by default `texts`, without columns.

        A document is a text, or a mapping with `text`, or `input_ids` that are complete as they
        are, and `columns`: name -> text or number. A document that is left out takes them along.
        """
        return self.texts(split)

    def column_names(self) -> Sequence[str] | None:
        """The columns that its documents may have; None: only the documents themselves know.

        By default none where neither `documents` nor `make_rows` is overridden.
        """
        own = (type(self).documents, type(self).make_rows)
        return () if own == (Data.documents, Data.make_rows) else None

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """The rows of a split: by default the texts tokenised (cached on disk) and laid as `rows`
        says.

        "pack" lays whole documents side by side, isolated; longer ones are cut into isolated
        pieces. "chunk" cuts the whole split contiguously. "one" gives each document a row,
        over-long ones cut at `cut`.
        """
        from kdcore.data.rows import pack_texts

        return pack_texts(self, split, tokenizer)

    def fingerprint(self) -> str:
        """Name and options; how documents begin and are read only where that was chosen."""
        chosen = {"bos": self.bos != "auto", "special_tokens": self.special_tokens != "text"}
        return of_options(self, without=[name for name, is_ in chosen.items() if not is_])

    def names_on_hub(self) -> Iterable[str]:
        """The data sets on the hub that it reads, for the model card; by default options say so."""
        return names_on_hub(self)


class Tokenizer(Component):
    """Where the ids come from."""

    component_kind: ClassVar[str] = "tokenizer"

    def load(self, run: Run, data: Data) -> PreTrainedTokenizerBase:
        """Load or train it. What is returned is kept in the run folder and not asked for again."""
        raise NotImplementedError


class Teacher(Component):
    """A distribution over the next token, from one model or several, live or stored."""

    component_kind: ClassVar[str] = "teacher"
    loads_members: ClassVar[bool] = False  # True: it loads the teachers nested in it, if it must
    own_tokens: ClassVar[bool] = False  # True: those nested in it read other ids than the student

    def load(self, run: Run) -> None:
        """Put the weights onto `run.device`, in evaluation mode. Called once, nested ones too."""

    def moves(self) -> bool:
        """Whether `to_host` and `to_device` work, so that several teachers can take turns."""
        return False

    def to_host(self) -> None:
        """Take the trunk's weights off the device until `to_device`; what `read` gave stays good.

        Called before `load` too, which then leaves them there.
        """
        raise NotImplementedError

    def to_device(self) -> None:
        """Put them back."""
        raise NotImplementedError

    def takes_turns(self) -> bool:
        """Whether the trunks of the teachers nested in it lie on the device one after another."""
        return False

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer it was made with; None: the student's. Called before `load`."""
        return None

    def gives_logits(self) -> bool:
        """Whether `read` works. False for a teacher that knows losses only."""
        return True

    def ids_known(self) -> int | None:
        """How many ids of each position `read` gives, as `SparseLogits`; None: all, as logits."""
        return None

    def knows_others_at(self, temperature: float) -> bool | None:
        """Whether its `SparseLogits` tells the mass of all other ids at this temperature.

        None, by default at any temperature but 1: it does not say. Losses then temper its masses at
        temperature 1, which is another objective, and a warning says so.
        """
        return True if temperature == 1 else None

    def warnings(self, recipe: Stage, caches: Path) -> Iterable[str]:
        """What to know before a run, one sentence each, for `kdcore plan`.

        `caches` is where stores lie, or would. Nothing may be loaded.
        """
        return ()

    def is_estimate(self) -> bool:
        """Whether what `read` tells is drawn at random and right on average only.

        Losses learn from it that are `linear_in_teacher`; others, selections and evals are refused.
        """
        return False

    def gives_losses(self) -> bool:
        """Whether `nll` works: by default where `read` tells of all ids, or does not work."""
        return self.ids_known() is None

    def architecture(self, device: torch.device) -> PretrainedConfig | None:
        """The config of its model, without weights, for `kdcore plan`; None where it has none.

        Its `dtype` is what the weights are held in on the device. Teachers nested in it are asked
        for themselves.
        """
        return None

    def known(self, batch: Batch) -> Tensor | None:
        """Which of `batch.valid` it knows anything of, bool [valid]; None: all of them.

        Asked before `read` and without a forward pass. Terms that need the teacher see and count
        the known tokens only; elsewhere `read` may give anything finite.
        """
        return None

    def own_vocabulary(self, batch: Batch) -> OwnVocabulary | None:
        """What it says in ids of its own, for losses that compare with these; nothing is read yet.

        None, the default: its ids are the student's, and each token that it knows is a span.
        """
        return None

    def knows_all(self) -> bool:
        """Whether `known` need not be asked: by default where it is not overridden."""
        return type(self).known is Teacher.known

    def bytes_per_token(self) -> float:
        """What it keeps on disk for each token of the training data, for `kdcore plan`."""
        return 0

    def read(self, batch: Batch) -> TeacherOutputs:
        """Run the trunk once over the batch and hand back a way to ask for logits at flat
        positions, or for a `SparseLogits` where `ids_known` says so.

        Call `kdcore.read(teacher, batch)` instead, also from a nesting teacher: it checks and cuts
        what comes back.
        """
        raise NotImplementedError

    def writes(self) -> bool:
        """Whether `generate` works."""
        return False

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[Completion]:
        """An answer to each prompt, in order; `source` of each is "teacher".

        Only ids below `sampling.vocabulary`. The same prompts give the same answers.
        """
        raise UsageError(f"the teacher {self.name!r} cannot write: it only reads what others wrote")

    def next_tokens(self, rows: Sequence[Sequence[int]], vocabulary: int) -> NextTokens:
        """Scores of the token after each of these rows of ids, which grow by a token at a time.

        Logits of the ids below `vocabulary`, without gradient, in its own precision. For teachers
        that write together with others.
        """
        raise UsageError(f"the teacher {self.name!r} does not tell its next token: it cannot write")

    def tells_next_tokens(self) -> bool:
        """Whether `next_tokens` works: by default where it is overridden."""
        return type(self).next_tokens is not Teacher.next_tokens

    def parts(self, batch: Batch) -> Sequence[tuple[float, TeacherOutputs]] | None:
        """Weights and what `read` of several teachers gives, over which a loss's values are summed.

        None, the default: losses learn from what `read` gives. Everything else, such as evals and
        likelihoods, goes by `read` in any case.
        """
        return None

    def gives_parts(self) -> bool:
        """Whether `parts` gives some: by default where it is overridden."""
        return type(self).parts is not Teacher.parts

    def gives_states(self) -> bool:
        """Whether `read_states` works: by default where it is overridden."""
        return type(self).read_states is not Teacher.read_states

    def layer_sizes(self) -> Sequence[int]:
        """The width of each hidden state, the embeddings' first; asked after `load`."""
        raise NotImplementedError

    def read_states(self, batch: Batch, layers: Sequence[int]) -> tuple[TeacherOutputs, StatesFn]:
        """What `read` gives, and the hidden states of these layers, from one pass of the trunk.

        Layers count as transformers' `hidden_states`: 0 the embeddings, -1 behind the last norm.
        """
        raise UsageError(f"the teacher {self.name!r} does not show its hidden states")

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """Flat positions, labels [n] -> negative log-likelihoods [n]; by default from `read`."""
        from kdcore.models.head import nll_from_logits

        known = self.ids_known()
        if known is not None:
            raise UsageError(
                f"teacher {self.name!r} knows {known} ids of each position only, and gives no "
                "likelihoods of all labels"
            )
        return nll_from_logits(cast("LogitsFn", self.read(batch)), batch)


class Loss(Component):
    """A divergence or likelihood at each token."""

    component_kind: ClassVar[str] = "loss"
    needs_teacher: ClassVar[bool] = True
    own_vocabulary: ClassVar[bool] = False  # True: it compares with the teacher's own ids

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Student logits [n, V], teacher logits [n, V] (None if not needed) and labels [n] ->
        values [n], in nats. With `own_vocabulary` the teacher's are [n, V_teacher], right where a
        span of `Tokens.spans` begins.

        Float32 in and out. It must not write into its inputs. Gradients reach the student's logits
        only. V may be another one at each call: of a teacher that knows k ids only, logits on both
        sides are those of these ids and, last, of all others together, and labels index them.
        """
        raise NotImplementedError

    def temperatures(self) -> Sequence[float]:
        """Those that it divides both sides' logits by: the option `temperature`, or 1 without it.

        Where a teacher knows k ids, the engine hands a loss of one temperature T buckets that are
        right at T. Empty: T changes during the run, as that of a schedule does, or from token to
        token, and only a teacher of all ids serves the loss.
        """
        found = getattr(self, "temperature", 1.0)
        return [float(found)] if isinstance(found, (int, float)) else []

    def linear_in_teacher(self) -> bool:
        """Whether the gradient is linear in the teacher's probabilities, so that it is right on
        average where these are estimates that are right on average.
        """
        return False

    def formula(self) -> str:
        """What `per_token` computes, for `kdcore plan`: in p(T), q(T) and the label y."""
        return as_call(self)


class PreparedLoss(Loss):
    """A loss whose value at a token depends on more than that token, such as a whole answer.

    `prepare` sees the whole optimizer step, once and without gradient. What depends on an answer is
    a coefficient of its tokens: the gradient of f(sum of log q) is f' times the sum of theirs.
    """

    needs_samples: ClassVar[bool] = False  # True: the tokens are drawn from the student's own q
    only_prepared: ClassVar[bool] = False  # True: `per_token_prepared` is given no teacher

    def prepare(self, tokens: Tokens) -> Tensor:
        """A float for each of this process's valid tokens, [n] or [n, k] with the same k and dtype
        in each step. Runs after the selection, whatever its scope.
        """
        raise NotImplementedError

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """As `per_token`, with the rows of `prepared` that belong to these tokens."""
        raise NotImplementedError

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Refused: without a step to prepare there is no value."""
        raise UsageError(
            f"loss {self.name!r} is prepared over a whole optimizer step: it can be a [[loss]], "
            "and neither a score of a selection nor an eval"
        )


class Selection(Component):
    """Which tokens of an optimizer step are trained on."""

    component_kind: ClassVar[str] = "selection"

    def keep(self, tokens: Tokens) -> Tensor:
        """A bool for each of this process's valid tokens [n], or floats >= 0: their weights.

        Called without gradient. A term with `on = "kept"` is the weighted mean, divided by the sum
        of the weights; `on = "dropped"` sees the tokens of weight 0.
        """
        raise NotImplementedError

    def needs_teacher(self) -> bool:
        """Whether `keep` asks for the run's own teacher; a teacher among its options is no such."""
        return False


@component
class Rollout(Component):
    """Who writes the rows of a step that are drawn for writing: `[rollout]`."""

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
        """An answer to each prompt in order, or several to a prompt as a sequence of their own.

        Called between steps, for a group of prompts on one process alone: without gradient, the
        student in evaluation mode. What it draws comes from each prompt's seed, so that neither
        the number of processes nor a restart changes it. An answer without ids is left out.
        """
        raise NotImplementedError

    def generated(self, run: Run, step: int, completions: Sequence[Completion]) -> None:
        """What was written for the rows of a step, on every process alike, before it is trained.

        State (`state_dict`) that is built from nothing else is the same everywhere.
        """

    def needs_teacher(self) -> bool:
        """Whether `generate` asks the run's own teacher; one among its options is no such."""
        return False


class Patch(Component):
    """A change to a fresh student: initialisation, adapters, kernels."""

    component_kind: ClassVar[str] = "patch"

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Called once, before training and before a checkpoint is read."""
        raise NotImplementedError

    def finish(self, model: PreTrainedModel) -> PreTrainedModel:
        """Called before the final save, on every process: merge adapters; by default nothing.

        What it returns is the run's student from then on.
        """
        return model


class Eval(Component):
    """Numbers or texts measured on the student during and after training."""

    component_kind: ClassVar[str] = "eval"
    always: ClassVar[bool] = False  # used by every run, unless its plugin is blocked
    needs_teacher: ClassVar[bool] = False

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """Scores by name, as in `eval/<name>`. Called on every process; all return the same."""
        raise NotImplementedError


class Logger(Component):
    """Event hooks as methods, each with `@hookimpl`. One that raises is switched off.

    RunError ends the run instead: for a logger whose record must not be lost.
    """

    component_kind: ClassVar[str] = "logger"
    always: ClassVar[bool] = False  # used by every run, unless its plugin is blocked


@_options
class StudentOptions:
    """`[student]`: a model to load, or a config to make a fresh one from."""

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
        """What changes the fresh student, in order."""
        return tuple(self.patch)


@dataclass(frozen=True, eq=False)
class Term:
    """A loss with its weight. `label` tells it apart in records: `kl`, and `kl.2` for a second."""

    label: str
    use: str
    loss: Loss
    weight: float | Schedule
    on: On
    where: Where | None = None  # None: it sees all documents

    def weight_at(self, done: float) -> float:
        """The weight when the share `done` of the run is done."""
        return self.weight.at(done) if isinstance(self.weight, Schedule) else self.weight


Scope = Literal["step", "micro_batch"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """The components and options of one run. `recipe.build` gives each caller one of its own."""

    name: str  # "" where the recipe has no stages
    run_name: str  # "rho_qwen", or with stages "quickstart.teacher"
    table: dict[str, object]  # the merged recipe as typed
    seed: int  # the recipe's
    student: StudentOptions  # `[student]`
    tokenizer: Tokenizer | None  # None: the student's own
    tokenizer_data: Data  # what the tokenizer is trained on, if it is
    data: Data  # `[data]`
    teacher: Teacher | None  # `[teacher]`
    terms: Sequence[Term]  # each `[[loss]]`, in order
    selection: Selection | None  # `[selection]`
    scope: Scope  # over what the selection ranks
    evals: Sequence[Eval]  # those that every run has included
    loggers: Sequence[Logger]  # those that every run has included
    train: TrainOptions  # `[train]`
    rollout: Rollout | None = None  # `[rollout]`
    writing: RolloutOptions = field(default_factory=RolloutOptions)  # the engine's options there
    trusted: Sequence[str] = ()  # models whose own code may run
    resources: ResourceOptions | None = None  # `[resources]`

    def components(self) -> list[Component]:
        """Every component, each before those that are nested in it."""
        seen = dict.fromkeys(nested for one in self._direct() for nested in iter_components(one))
        return list(seen)

    def by_place(self) -> dict[str, Component]:
        """Every component by where it is in the recipe, such as `loss.0` or `teacher.members.1`."""
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
    """One stage while it runs, as far as plugins may ask. Plugins read it; the engine writes."""

    recipe: Stage  # the stage that runs, components and options
    folder: Path  # the run folder
    device: torch.device  # of this process
    process: int  # this process's rank, from 0
    processes: int  # the world size
    step: int  # optimizer steps done
    steps: int  # in the whole run
    tokens: int  # valid tokens trained on so far
    micro_batch: int  # rows that go through the models together
    chunk: int  # tokens that head and losses see at a time
    vocabulary: int  # ids that student and teachers share; logits are cut to these
    objective: str  # the effective objective as a formula, as `kdcore plan` prints it
    scores: Mapping[str, float | str]  # of the last evaluation
    reads_teacher: bool  # False where it was opened for evals that need none: it is not loaded
    tokenizer: PreTrainedTokenizerBase  # the student's
    language_model: LanguageModel  # the student as trunk and head
    autocast: Callable[[], AbstractContextManager[Any]]  # the precision that is trained in

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
        """Rows (with `batch_documents` documents) in an optimizer step, over all processes."""
        return self.recipe.train.drawn

    @property
    def documents_in_step(self) -> float:
        """Documents in an optimizer step, on average; 0 where nobody counts them."""
        return 0.0

    @property
    def caches(self) -> Path:
        """The folder of teacher caches that runs share: beside the runs."""
        return self.folder.parent / "caches"

    @property
    def epochs(self) -> float:
        """How often the run goes through the training data; 0 where it is streamed."""
        rows = len(self.rows("train"))
        return self.steps * self.batch / rows if rows else 0.0

    @property
    def bytes_per_id(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for in running text, int32 [ids]; special tokens 0."""
        raise NotImplementedError

    def rows(self, split: str) -> Sequence[Row]:
        """The rows of "train" (of its first epoch), or the evaluated ones of "validation"."""
        raise NotImplementedError

    def ids(self, split: str, places: np.ndarray) -> np.ndarray:
        """The ids of a split's documents at these indices, counted through all of them.

        For plugins that read documents otherwise than in rows.
        """
        raise NotImplementedError

    def columns_fingerprint(self, split: str, names: Iterable[str]) -> str:
        """What the documents of "train" or "validation" have in these columns, as a short text."""
        from kdcore.data.columns import fingerprint_of

        return fingerprint_of(self.laid(split).columns(), names)

    def laid(self, split: str, epoch: int = 0) -> RowDataset:
        """All rows of a split; training rows may be a `Stream`, which has no length.

        Only the last epoch's are held, besides the first's.
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

        Keys: `tokens`, `bytes` (of text that these tokens stand for), `nll` (nats), each loss's
        name (a second `kl` is `kl.2`), and with a teacher `agreement` (tokens that both rank
        first), and `known` where it may know some tokens only: what is compared is over these.
        `by` a column, each sum comes for each of its values too: `nll/math`, `tokens/math`.
        With `keep_documents` a training run writes tokens, bytes and nats of each document into
        its folder, which `kdcore compare` reads.
        """
        raise NotImplementedError

    def log_likelihoods(self, rows: Sequence[Row], *, batch: int = 64) -> list[float]:
        """The log-probability that the student gives to each row's trained tokens, in nats.

        `batch` rows run at a time, of like lengths; every process gets all results.
        """
        raise NotImplementedError

    def sampling(self, rollout: Rollout) -> Sampling:
        """How this writer's options draw, with the run's vocabulary and the ids that end a text."""
        raise NotImplementedError

    def prompts(self) -> list[Prompt]:
        """Those of all training rows of the first epoch, as `[rollout]` cuts them.

        For writers that answer ahead; a step's own have other seeds.
        """
        raise NotImplementedError

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, sampling: Sampling | None = None
    ) -> list[Completion]:
        """`n` answers of the student to each prompt, those to the same one side by side.

        By default drawn as the recipe's [rollout] says. On this process alone, an answer to each
        prompt at a time.
        """
        raise NotImplementedError

    def score(
        self, teacher: Teacher | None, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> list[float]:
        """The log-probability of each answer to its prompt, in nats, of a loaded teacher.

        None: the student. On this process alone, `micro_batch` answers at a time.
        """
        raise NotImplementedError

    def token_values(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        losses: Sequence[Loss],
        teacher: Teacher | None = None,
    ) -> list[Tensor]:
        """Losses' values at each token of each answer [tokens, losses], on this process's CPU."""
        raise NotImplementedError

    def say(self, message: str) -> None:
        """Tell the user something, once: on the terminal and in log.txt."""
        raise NotImplementedError


class Tokens:
    """This process's valid tokens of the optimizer step [n], lazy: what is not asked for is free.

    They come in the order of the step's rows, whichever rows went through the models together.
    """

    step: int  # the optimizer step, from 1

    @property
    def labels(self) -> Tensor:
        """The id that each token's position predicts, int64 [n]."""
        raise NotImplementedError

    @property
    def row(self) -> Tensor:
        """The index of its row in the optimizer step, int64 [n]."""
        raise NotImplementedError

    @property
    def position(self) -> Tensor:
        """The index of the predicting token in its row, int64 [n]."""
        raise NotImplementedError

    @property
    def document(self) -> Tensor:
        """The document of each token in its split, int64 [n]."""
        raise NotImplementedError

    def column(self, name: str) -> Tensor:
        """The column of the document of each predicted token [n].

        Numbers are float64, NaN where a document has none. Of texts these are indices into
        `categories(name)`, int64, -1 where a document has none. "source" says who wrote: "data"
        unless a row says otherwise. Every process must ask for the same columns.
        """
        raise NotImplementedError

    def categories(self, name: str) -> Sequence[str]:
        """The texts of a column in this step, over all processes, sorted; of numbers none."""
        raise NotImplementedError

    @property
    def prompt(self) -> Tensor:
        """What each token answers, int64 [n]: equal for the answers to one prompt of a [rollout].

        Of tokens of data it is their document.
        """
        raise NotImplementedError

    def seen(self, loss: Loss) -> Tensor:
        """Which tokens the `[[loss]]` of this loss sees after the selection, bool [n]."""
        raise NotImplementedError

    def count(self, loss: Loss) -> Tensor:
        """The denominator of that term over the whole step and all processes, a scalar."""
        raise NotImplementedError

    def by_document(self, values: Tensor) -> Tensor:
        """Each token's document summed over the step and all processes, float64 [n]."""
        raise NotImplementedError

    def by_row(self, values: Tensor) -> Tensor:
        """Each token's row summed over the step, float64 [n]."""
        raise NotImplementedError

    def student_nll(self) -> Tensor:
        """The student's negative log-likelihood of each label, in nats [n]."""
        raise NotImplementedError

    def old_log_probs(self) -> Tensor:
        """The log-probability of each label under who wrote it, as it was drawn, float64 [n].

        In nats, at temperature 1 over the shared ids, whatever temperature, top_k and top_p drew it
        and however many steps ago. NaN where no writer recorded it, as of tokens of data. A loss
        that is right for drawn tokens only also sets `needs_samples`.
        """
        raise NotImplementedError

    def nll(self, teacher: Teacher | None = None) -> Tensor:
        """A teacher's (by default the run's) negative log-likelihood of each label, in nats [n]."""
        raise NotImplementedError

    def score(
        self, loss: Loss, teacher: Teacher | None = None, prepared: Tensor | None = None
    ) -> Tensor:
        """Any loss as a score of each token, in chunks, without gradient [n].

        `prepared` [n, ...] is what a `PreparedLoss` gets.
        """
        raise NotImplementedError

    def spans(self) -> Tensor:
        """The span of each token that is the same text to the run's teacher, int64 [n].

        Equal numbers are one span, on this process; -1: in none. Where student and teacher have the
        same ids each token that the teacher knows is a span.
        """
        raise NotImplementedError

    def span_nll(self) -> Tensor:
        """Where a span begins: the teacher's nll of its first token in the span, and of its later
        ones together, in nats [n, 2]; elsewhere anything.
        """
        raise NotImplementedError

    def shared_ids(self) -> tuple[Tensor, Tensor]:
        """The ids that stand for the same text, the student's and the teacher's, int64 [m] each."""
        raise NotImplementedError

    def top(self, scores: Tensor, share: Scheduled) -> Tensor:
        """The ceil(share x N) highest scores over all processes, bool [n].

        N counts the valid tokens of the step. Ties go to the token that comes first; NaN is never
        kept.
        """
        raise NotImplementedError

    def over_step(self, values: Tensor) -> Tensor:
        """The values of all processes' tokens in the step's order [N]."""
        raise NotImplementedError

    def random(self) -> Tensor:
        """A number in [0, 1) for each token, from seed, step and its place in the step [n]."""
        raise NotImplementedError
