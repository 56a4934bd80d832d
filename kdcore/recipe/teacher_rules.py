"""Rules on what losses, selections and evals need from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from kdcore.api.component import Component
from kdcore.api.loss import HiddenStatesLoss, Loss, Term, width_error
from kdcore.api.student import StudentOptions
from kdcore.api.teacher import Teacher
from kdcore.errors import Diagnostic, KdcoreError
from kdcore.guard import call_checked
from kdcore.models.hidden_states import layer_error
from kdcore.recipe.build import Builder

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Assembly(Protocol):
    """A stage being assembled, as these rules see it."""

    student: StudentOptions | None
    teacher: Teacher | None
    terms: list[Term]
    builder: Builder


def ill_served(
    teacher: Teacher, users: Sequence[Component], use: str | None
) -> Iterator[tuple[Component, str, str]]:
    """Components that need more than the teacher provides, with error and hint."""
    gives_logits = call_checked(teacher, "gives_logits", of=bool)
    is_estimate = call_checked(teacher, "is_estimate", of=bool)
    for user in users:
        if isinstance(user, HiddenStatesLoss):
            if not call_checked(teacher, "gives_states", of=bool):
                said = f"the loss {user.name!r} compares hidden states, and the teacher {use!r} "
                yield user, f"{said}shows none", "a single model that is read in each step does"
            continue
        if isinstance(user, Loss) and not gives_logits:
            said = f"the loss {user.name!r} needs logits, and the teacher {use!r} gives no logits"
            yield user, said, ""
        linear = isinstance(user, Loss) and call_checked(user, "linear_in_teacher", of=bool)
        if is_estimate and not linear:
            said = f"{user.name!r} needs the teacher's distribution, and {use!r} gives an estimate"
            hint = "only losses that are linear in its probabilities learn from that"
            yield user, said, f"{hint}: at a temperature other than 1 there is none"
        elif isinstance(user, Loss) and user.needs_teacher and gives_logits:
            yield from _ill_tempered(teacher, user, use)


def _ill_tempered(
    teacher: Teacher, loss: Loss, use: str | None
) -> Iterator[tuple[Component, str, str]]:
    """A loss at a temperature for which a top-k teacher has no mass of other ids."""
    if call_checked(teacher, "ids_known", of=(int, type(None))) is None:
        return
    all_ids = "a teacher that gives the logits of all ids serves every temperature"
    found = call_checked(loss, "temperatures", of=Sequence)
    if len(found) != 1:
        said = f"the loss {loss.name!r} changes its temperature, or has several, and the teacher "
        said += f"{use!r} knows some ids: the mass of all others has to be known at one temperature"
        yield loss, said, all_ids
    elif call_checked(teacher, "knows_others_at", found[0], of=(bool, type(None))) is False:
        said = f"the loss {loss.name!r} is at temperature {found[0]:g}, and the teacher {use!r} "
        said += "cannot give the mass of its unknown ids there"
        yield loss, said, f"take temperature = 1; {all_ids}"


def state_errors(stage: Assembly) -> Iterator[Diagnostic]:
    """Layers that a model does not have, and states of different width.

    Checked for configs on this machine only; the run checks again.
    """
    losses = [t.loss for t in stage.terms if isinstance(t.loss, HiddenStatesLoss)]
    if not losses:
        return
    ours, theirs = _shape(lambda: _student(stage.student)), _shape(lambda: _teacher(stage.teacher))
    places = {id(made): table for made, table in stage.builder.places}
    for loss in losses:
        place = places[id(loss)].table.get("layers", places[id(loss)])
        for said in _pair_errors(loss, ours, theirs):
            yield place.error(said)


Shape = tuple[int, int]
"""The number of layers of a model, and the width of its states."""


def _pair_errors(loss: HiddenStatesLoss, ours: Shape | None, theirs: Shape | None) -> Iterator[str]:
    for pair in loss.layers:
        sides = zip(("student", "teacher"), pair, (ours, theirs), strict=True)
        outside = [
            f"the {owner} {layer_error(layer, shape[0])}"
            for owner, layer, shape in sides
            if shape is not None and not -shape[0] - 1 <= layer <= shape[0]
        ]
        yield from outside
        if ours and theirs and not outside and loss.projection == "none" and ours[1] != theirs[1]:
            yield width_error(pair, ours[1], theirs[1])


def _shape(config_of: Callable[[], PretrainedConfig | None]) -> Shape | None:
    """The shape of a model whose config is on this machine."""
    from huggingface_hub.errors import StrictDataclassError

    from kdcore.models.locations import without_downloads

    try:
        with without_downloads():
            config = config_of()
    except (KdcoreError, OSError, ValueError, KeyError, TypeError, StrictDataclassError):
        return None  # what is wrong with it, the student itself will say
    text = config and config.get_text_config()
    found = [getattr(text, key, None) for key in ("num_hidden_layers", "hidden_size")]
    layers, width = found
    return (layers, width) if isinstance(layers, int) and isinstance(width, int) else None


def _student(options: StudentOptions | None) -> PretrainedConfig | None:
    from transformers import AutoConfig

    from kdcore.models.loading import load_config

    if options is None:
        return None
    if options.model is not None:
        return load_config(options.model)
    typed = dict(options.config or {})
    config: PretrainedConfig = AutoConfig.for_model(str(typed.pop("model_type")), **typed)
    return config


def _teacher(teacher: Teacher | None) -> PretrainedConfig | None:
    import torch

    if teacher is None:
        return None
    return teacher.architecture(torch.device("cpu"))
