"""The terms of a recipe that compare hidden states: what they read, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdcore.api.contracts import Teacher, Term
from kdcore.api.hidden_states import HiddenStatesLoss
from kdcore.errors import PluginError, RunError
from kdcore.guard import call_checked, describe_component, inputs_unchanged, plugin_errors
from kdcore.models.head import upcast
from kdcore.models.hidden_states import layer_fault

if TYPE_CHECKING:
    from kdcore.api.contracts import Run
    from kdcore.models.causal_lm import LanguageModel

Weighted = tuple[Term, float]


def compares_states(term: Term) -> bool:
    """Whether a term's loss compares hidden states, and knows no logits."""
    return isinstance(term.loss, HiddenStatesLoss)


class HiddenTerms:
    """Those of a recipe. Their layers are read together, whichever terms count in a step."""

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
        """Let the student's layers be read. Called before they are compiled."""
        if self.student:
            student.watch_layers(())  # to know how many there are
            check_layers("student", self.student, student.layer_sizes)
            student.watch_layers(self.student)

    def prepare(self, run: Run) -> None:
        """Make what the losses learn; called once the teacher is loaded.

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
        """What the losses learn, by term."""
        found = {
            label: call_checked(loss, "learned", of=(nn.Module, type(None)))
            for label, loss in self._losses.items()
        }
        return {label: module for label, module in found.items() if module is not None}

    def values(self, label: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """A term's values [n]. The states [n, H] are those of all terms, at the tokens of this."""
        at = self._at[label]
        return checked_values(self._losses[label], student[at], teacher[at])

    def idle(self, active: Sequence[Weighted]) -> Tensor | float:
        """Nothing, with a gradient of 0 in what terms learn that do not count in this step.

        Without it processes would wait for that gradient.
        """
        labels = {term.label for term, _ in active}
        modules = [module for label, module in self.learned().items() if label not in labels]
        return sum(0.0 * p.sum() for module in modules for p in module.parameters())


def checked_values(
    loss: HiddenStatesLoss, student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Tensor:
    """A loss's values [n] for the states of its pairs [n, H], its result checked."""
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
    """Raises RunError where a model with states of these widths has not all of the layers."""
    for layer in layers:
        if not -len(sizes) <= layer < len(sizes):
            raise RunError(f"the {owner} {layer_fault(layer, len(sizes) - 1)}")


def states_wanted(teacher: Teacher | None, terms: HiddenTerms) -> tuple[Teacher, list[int]] | None:
    """Whose hidden states a micro-batch reads, and of which layers; None: of none."""
    return (teacher, terms.teacher) if teacher is not None and terms.teacher else None
