"""The terms of a recipe that compare hidden states: their layers and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdcore.api.loss import HiddenStatesLoss, Term
from kdcore.api.teacher import Teacher
from kdcore.errors import PluginError, RunError
from kdcore.guard import call_checked, describe_component, inputs_unchanged, plugin_errors
from kdcore.models.head import upcast
from kdcore.models.hidden_states import layer_error

if TYPE_CHECKING:
    from kdcore.api.run import Run
    from kdcore.models.causal_lm import LanguageModel

Weighted = tuple[Term, float]


def compares_states(term: Term) -> bool:
    """Whether a term's loss compares hidden states instead of logits."""
    return isinstance(term.loss, HiddenStatesLoss)


class HiddenTerms:
    """All hidden-state terms of a recipe. Their layers are read together in every step."""

    def __init__(self, terms: Sequence[Term] = ()) -> None:
        self._losses = {
            term.label: term.loss for term in terms if isinstance(term.loss, HiddenStatesLoss)
        }
        pairs = [pair for loss in self._losses.values() for pair in loss.layers]
        self.student = [ours for ours, _ in pairs]
        self.teacher = [theirs for _, theirs in pairs]
        self._at: dict[str, slice] = {}
        begin = 0
        for label, loss in self._losses.items():
            self._at[label] = slice(begin, begin + len(loss.layers))
            begin += len(loss.layers)

    def watch(self, student: LanguageModel) -> None:
        """Hook the student's layers. Called before they are compiled."""
        if self.student:
            student.watch_layers(())  # to find the number of layers
            check_layers("student", self.student, student.layer_sizes)
            student.watch_layers(self.student)

    def prepare(self, run: Run) -> None:
        """Initialise the losses' learned parameters. Called once, after the teacher is loaded.

        Raises RunError or UsageError where layers cannot be compared.
        """
        teacher = run.teacher
        if not self.teacher:
            return
        assert teacher is not None, "a recipe whose losses need a teacher has one"
        sizes = call_checked(teacher, "layer_sizes", of=Sequence)
        check_layers(f"teacher {teacher.name!r}", self.teacher, sizes)
        ours = [run.language_model.layer_sizes[layer] for layer in self.student]
        theirs = [sizes[layer] for layer in self.teacher]
        for n, (label, loss) in enumerate(self._losses.items()):
            at = self._at[label]
            with plugin_errors(loss, "set_sizes"):
                loss.set_sizes(ours[at], theirs[at], run.seed + n)
        for module in self.learned().values():
            module.to(run.device)

    def learned(self) -> dict[str, nn.Module]:
        """The learned modules, by term label."""
        found = {
            label: call_checked(loss, "learned", of=(nn.Module, type(None)))
            for label, loss in self._losses.items()
        }
        return {label: module for label, module in found.items() if module is not None}

    def values(self, label: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """A term's values [n], from the states [n, H] of all terms' layers at its tokens."""
        at = self._at[label]
        return checked_values(self._losses[label], student[at], teacher[at])

    def idle(self, active: Sequence[Weighted]) -> Tensor | float:
        """A zero that depends on the learned parameters of terms that are inactive in this step.

        DDP waits for the gradient of every parameter; this gives them one of 0.
        """
        labels = {term.label for term, _ in active}
        modules = [module for label, module in self.learned().items() if label not in labels]
        return sum(0.0 * p.sum() for module in modules for p in module.parameters())


def checked_values(
    loss: HiddenStatesLoss, student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Tensor:
    """A loss's values [n] for the states [n, H] of its pairs, checked."""
    ours, theirs = [upcast(each) for each in student], [upcast(each) for each in teacher]
    method = "per_token_states"
    with plugin_errors(loss, method), inputs_unchanged(loss, method, *ours, *theirs):
        values: object = loss.per_token_states(loss.projected(ours), theirs)
    wanted = (len(ours[0]),)
    if not isinstance(values, Tensor) or values.shape != wanted:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(
            f"{describe_component(loss)} returned {found} from {method}, expected one value for "
            f"each of {wanted[0]} tokens: a tensor of shape {wanted}"
        )
    if any(each.requires_grad for each in ours) and not values.requires_grad:
        raise PluginError(f"{describe_component(loss)} returned values without a gradient")
    return values


def check_layers(owner: str, layers: Sequence[int], sizes: Sequence[int]) -> None:
    """Raise RunError where a model with these state widths lacks one of the layers."""
    for layer in layers:
        if not -len(sizes) <= layer < len(sizes):
            raise RunError(f"the {owner} {layer_error(layer, len(sizes) - 1)}")


def states_wanted(teacher: Teacher | None, terms: HiddenTerms) -> tuple[Teacher, list[int]] | None:
    """The teacher and layers whose hidden states a micro-batch reads; None: no such term."""
    return (teacher, terms.teacher) if teacher is not None and terms.teacher else None
