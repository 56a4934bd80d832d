"""The contracts: what a plugin author writes, and what the engine hands over.

A component is a small class with a name and options. `@component` makes it a keyword-only, strict
pydantic dataclass; its fields are its options in a recipe. A component does no masking, reducing,
chunking or moving of tensors between devices: that is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar, cast, dataclass_transform

import pluggy
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.batch import AnswersAt, Batch, Rows
    from kdcore.run import Run
    from kdcore.stage import Stage
    from kdcore.tokens import Tokens

hookimpl = pluggy.HookimplMarker("kdcore")

_Class = TypeVar("_Class")
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


@dataclass_transform(kw_only_default=True, eq_default=False)
def component(cls: type[_Class]) -> type[_Class]:
    """Turn a class into a component: keyword-only options, strictly typed, unknown ones refused.

    Option types: bool, int, float, str, Literal, list, dict, a component kind, and unions of these.
    """
    # eq=False: two instances with equal options are two plugins to pluggy.
    made = pydantic_dataclass(kw_only=True, eq=False, config=_STRICT)(cls)
    return cast(type[_Class], made)


class Component:
    """Anything that a recipe can name. Subclasses of one kind are told apart by `name`."""

    name: ClassVar[str]

    def fingerprint(self) -> str:
        """What this component is, content included, as a short text; compared when a run is
        continued.

        By default its name and its options. A component that reads files adds what it read.
        """
        from kdcore.fingerprints import of_options

        return of_options(self)

    def faults(self, recipe: Stage) -> Iterable[str]:
        """What is wrong between this component and the rest of its recipe, one sentence each."""
        return ()


@component
class Data(Component):
    """Text for training and validation, laid in rows of at most `block` tokens."""

    block: int = 512
    rows: Literal["pack", "chunk", "one"] = "pack"
    cut: Literal["left", "right", "split"] = "right"
    eos: bool = True
    fresh_each_epoch: ClassVar[bool] = False
    streams: ClassVar[bool] = False  # True: training rows come one by one, and nobody counts them

    def texts(self, split: str) -> Iterable[str]:
        """The documents of "train" or "validation", in order; tokenizers train on them too."""
        raise NotImplementedError

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """The rows of a split: by default the texts tokenised (cached on disk) and laid as `rows`
        says.

        "pack" lays whole documents side by side, isolated; longer ones are cut into isolated
        pieces. "chunk" cuts the whole split contiguously. "one" gives each document a row,
        over-long ones cut at `cut`.
        """
        from kdcore.rows import lay_texts

        return lay_texts(self, split, tokenizer)

    def names_on_hub(self) -> Iterable[str]:
        """The data sets on the hub that it reads, for the model card; by default options say so."""
        from kdcore.card import names_on_hub

        return names_on_hub(self)


class Tokenizer(Component):
    """Where the ids come from."""

    def load(self, run: Run, data: Data) -> PreTrainedTokenizerBase:
        """Load or train it. What is returned is kept in the run folder and not asked for again."""
        raise NotImplementedError


class Teacher(Component):
    """A distribution over the next token, from one model or several, live or stored."""

    loads_members: ClassVar[bool] = False  # True: it loads the teachers nested in it, if it must

    def load(self, run: Run) -> None:
        """Put the weights onto `run.device`, in evaluation mode. Called once, nested ones too."""

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer it was made with; None: the student's. Called before `load`."""
        return None

    def gives_logits(self) -> bool:
        """Whether `read` works. False for a teacher that knows losses only."""
        return True

    def ids_known(self) -> int | None:
        """Of how many ids at each position `read` tells, in a `Coarse`; None: of all, as logits."""
        return None

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

    def bytes_per_token(self) -> float:
        """What it keeps on disk for each token of the training data, for `kdcore plan`."""
        return 0

    def read(self, batch: Batch) -> AnswersAt:
        """Run the trunk once over the batch and hand back a way to ask for logits at flat
        positions, or for a `Coarse` where `ids_known` says so.

        Call `kdcore.read(teacher, batch)` instead, also from a nesting teacher: it checks and cuts
        what comes back.
        """
        raise NotImplementedError

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """Flat positions, labels [n] -> negative log-likelihoods [n]; by default from `read`."""
        from kdcore.reading import nll_from_logits, read

        return nll_from_logits(read(self, batch), batch)


class Loss(Component):
    """A divergence or likelihood at each token."""

    needs_teacher: ClassVar[bool] = True

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Student logits [n, V], teacher logits [n, V] (None if not needed) and labels [n] ->
        values [n], in nats.

        Float32 in and out. It must not write into its inputs. Gradients reach the student's logits
        only. V may be another one at each call: of a teacher that knows k ids only, logits on both
        sides are those of these ids and, last, of all others together, and labels index them.
        """
        raise NotImplementedError

    def linear_in_teacher(self) -> bool:
        """Whether the gradient is linear in the teacher's probabilities, so that it is right on
        average where these are estimates that are right on average.
        """
        return False

    def formula(self) -> str:
        """What `per_token` computes, for `kdcore plan`: in p(T), q(T) and the label y."""
        from kdcore.fingerprints import as_call

        return as_call(self)


class Selection(Component):
    """Which tokens of an optimizer step are trained on."""

    def keep(self, tokens: Tokens) -> Tensor:
        """A bool for each of this process's valid tokens [n]. Called without gradient."""
        raise NotImplementedError

    def needs_teacher(self) -> bool:
        """Whether `keep` asks for the run's own teacher; a teacher among its options is no such."""
        return False


class Patch(Component):
    """A change to a fresh student: initialisation, adapters, kernels."""

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

    always: ClassVar[bool] = False  # used by every run, unless its plugin is blocked
    needs_teacher: ClassVar[bool] = False

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """Scores by name, as in `eval/<name>`. Called on every process; all return the same."""
        raise NotImplementedError


class Logger(Component):
    """Event hooks as methods, each with `@hookimpl`. One that raises is switched off."""

    always: ClassVar[bool] = False  # used by every run, unless its plugin is blocked


KINDS: Mapping[str, type[Component]] = {
    "data": Data,
    "tokenizer": Tokenizer,
    "teacher": Teacher,
    "loss": Loss,
    "selection": Selection,
    "patch": Patch,
    "eval": Eval,
    "logger": Logger,
}
"""Every kind by the word that users read. The kind's hook is `kdcore_` and its plural."""
