"""The contract of teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field

from kdcore.api.component import AnyRun, AnyStage, Component, component
from kdcore.api.options import iter_components
from kdcore.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from kdcore.data.batch import Batch, LogitsFn, OwnVocabulary, StatesFn, TeacherOutputs
    from kdcore.models.completions import Completion, Prompt, Sampling
    from kdcore.models.decoding import NextTokens


class Teacher(Component):
    """A distribution over the next token, from one model or several, live or cached."""

    component_kind: ClassVar[str] = "teacher"
    loads_members: ClassVar[bool] = False  # True: loads its nested teachers itself
    own_tokens: ClassVar[bool] = False  # True: nested teachers read other ids

    def load(self, run: AnyRun) -> None:
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

    def warnings(self, recipe: AnyStage, caches: Path) -> Iterable[str]:
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

    def max_input_length(self) -> int | None:
        """The most tokens of a document that it reads, once loaded; None: no limit of its own.

        The positions of the model that `architecture` describes are compared without it.
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

    def prefetch(self, batches: Sequence[Batch]) -> None:
        """Start work for batches that `read` gets next, such as requests, and return at once.

        Called with all micro-batches of a step, one step ahead where its rows are known. Some may
        never be read. Errors are raised by `read`.
        """

    def prefetches(self) -> bool:
        """Whether `prefetch` does anything. Defaults to whether it is overridden."""
        return type(self).prefetch is not Teacher.prefetch

    def writes(self) -> bool:
        """Whether `generate` works."""
        return False

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[Completion]:
        """One completion per prompt, in order, each with `source` "teacher".

        Only ids below `sampling.vocabulary`. The same prompts give the same completions.
        """
        raise UsageError(
            f"the teacher {self.name!r} cannot generate text: it only reads what others wrote"
        )

    def next_tokens(self, rows: Sequence[Sequence[int]], vocabulary: int) -> NextTokens:
        """Scores of the token after each of these rows of ids, which grow by one token at a time.

        Logits of the ids below `vocabulary`, without gradient, in the teacher's precision. For
        generation by several models together.
        """
        raise UsageError(
            f"the teacher {self.name!r} gives no next-token distribution, so it "
            "cannot generate text"
        )

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
        raise UsageError(f"the teacher {self.name!r} provides no hidden states")

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """Flat positions, labels [n] -> negative log-likelihoods [n]. Defaults to using `read`."""
        from kdcore.models.head import nll_from_logits

        known = self.ids_known()
        if known is not None:
            raise UsageError(
                f"teacher {self.name!r} knows {known} ids at each position, so it cannot give the "
                "likelihood of every label"
            )
        return nll_from_logits(cast("LogitsFn", self.read(batch)), batch)


@component
class CombinedTeacher(Teacher):
    """A teacher made of several, its `members`, whose trunks can take turns on the device.

    A subclass reads a member inside `with self.present(member):`. Heads stay on the device, so what
    was read remains valid.
    """

    members: Annotated[list[Teacher], Field(min_length=1)]
    keep_loaded: Annotated[
        Literal["all", "one"],
        Field(description="members on the device: all, or one after another; heads stay"),
    ] = "all"
    elsewhere = frozenset({"keep_loaded"})

    def faults(self, recipe: AnyStage) -> Iterable[str]:
        """Reject members that cannot take turns where they should."""
        for member in self.members:
            if self.takes_turns() and not member.moves():
                yield (
                    f"the member {member.name!r} cannot leave the device (it is quantised, "
                    'offloaded, sharded, or holds no model itself): leave keep_loaded = "one" out'
                )

    def load(self, run: AnyRun) -> None:
        """The engine loads the members; members that take turns are moved off the device again."""
        if self.takes_turns():
            for member in self.members:
                member.to_host()

    def takes_turns(self) -> bool:
        """Set by `keep_loaded`."""
        return self.keep_loaded == "one"

    @contextmanager
    def present(self, member: Teacher) -> Iterator[None]:
        """A member on the device, for as long as its trunk runs."""
        if not self.takes_turns():
            yield
            return
        member.to_device()
        try:
            yield
        finally:
            member.to_host()

    def gives_logits(self) -> bool:
        """Whether every member does."""
        return all(member.gives_logits() for member in self.members)
