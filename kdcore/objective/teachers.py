"""Teachers: loading, checks against the student, and checked reads of their outputs.

Teachers that nest others read their members through these functions too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from kdcore.api.component import Component
from kdcore.api.options import iter_components
from kdcore.api.teacher import Teacher
from kdcore.data.batch import (
    Batch,
    LogitsFn,
    OwnVocabulary,
    PartOutputs,
    Parts,
    SparseLogits,
    StatesFn,
    TeacherOutputs,
)
from kdcore.errors import PluginError, RunError, UsageError
from kdcore.guard import call_checked, describe_component, inputs_unchanged, plugin_errors
from kdcore.models.head import nll_from_logits, upcast

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from kdcore.api.run import Run


def read(teacher: Teacher, batch: Batch) -> LogitsFn:
    """Let a teacher read a batch. Returns a function from flat positions [n] to logits.

    Logits are [n, batch.vocabulary], checked, cut to the shared ids, in float32 or float64. Raises
    UsageError for a teacher that covers only some ids.
    """
    known = _ids_known(teacher)
    if known is not None:
        raise UsageError(
            f"teacher {teacher.name!r} knows {known} ids at each position and not the others, so "
            "it can only be the recipe's [teacher]"
        )
    return cast(LogitsFn, read_outputs(teacher, batch))


def read_outputs(teacher: Teacher, batch: Batch) -> TeacherOutputs:
    """As `read`, but accepts teachers that cover only some ids."""
    if not call_checked(teacher, "gives_logits", of=bool):
        raise UsageError(
            f"teacher {teacher.name!r} gives losses but no logits: it can be the "
            "reference of a selection, but no loss can learn from its distribution"
        )
    _set_eval_mode(teacher)
    with _asking(teacher, "read", batch):
        at = teacher.read(batch)
    return _checked_outputs(teacher, batch, at)


def _checked_outputs(teacher: Teacher, batch: Batch, at: TeacherOutputs) -> TeacherOutputs:
    if not callable(at):
        raise _broken(teacher, "read", type(at).__name__, "a function of flat positions")

    def answer(positions: Tensor) -> Tensor | SparseLogits:
        with _asking(teacher, "read", batch, positions):
            found = at(positions)
        if _ids_known(teacher) is not None:
            return _checked_coarse(teacher, found, len(positions), batch)
        checked = _checked(teacher, "read", found, (len(positions), batch.vocabulary), batch)
        return upcast(checked[:, : batch.vocabulary])

    return answer


def read_with_states(
    teacher: Teacher, batch: Batch, layers: Sequence[int]
) -> tuple[TeacherOutputs, StatesFn]:
    """As `read_outputs`, with the hidden states of these layers, in float32 or float64."""
    _set_eval_mode(teacher)
    with _asking(teacher, "read_states", batch):
        at, states_at = teacher.read_states(batch, layers)

    def states(positions: Tensor) -> list[Tensor]:
        with _asking(teacher, "read_states", batch, positions):
            found = states_at(positions)
        shape = (len(positions), 1)
        return [upcast(_checked(teacher, "read_states", each, shape, batch)) for each in found]

    return _checked_outputs(teacher, batch, at), states


def read_parts(teacher: Teacher, batch: Batch) -> PartOutputs:
    """The teacher's parts where it has some; otherwise as `read_outputs`."""
    if not call_checked(teacher, "gives_parts", of=bool):
        return read_outputs(teacher, batch)
    _set_eval_mode(teacher)
    with _asking(teacher, "parts", batch):
        found = teacher.parts(batch)
    if found is None:
        return read_outputs(teacher, batch)
    weights, outputs = zip(*found, strict=True)

    def answer(positions: Tensor) -> Parts:
        with _asking(teacher, "parts", batch, positions):
            return Parts(weights, tuple(at(positions) for at in outputs))

    return answer


def read_nll(teacher: Teacher, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """A teacher's negative log-likelihoods: flat positions [n], labels [n] -> [n]."""
    if type(teacher).nll is Teacher.nll:
        return nll_from_logits(read(teacher, batch), batch)
    _set_eval_mode(teacher)
    with _asking(teacher, "nll", batch):
        at = teacher.nll(batch)
    if not callable(at):
        expected = "a function of flat positions and labels"
        raise _broken(teacher, "nll", type(at).__name__, expected)

    def nll(positions: Tensor, labels: Tensor) -> Tensor:
        with _asking(teacher, "nll", batch, positions, labels):
            found = at(positions, labels)
        return upcast(_checked(teacher, "nll", found, (len(positions),), batch))

    return nll


def prefetch(teacher: Teacher, batches: Sequence[Batch]) -> None:
    """Announce the batches that a teacher reads next."""
    with torch.no_grad(), plugin_errors(teacher, "prefetch"):
        teacher.prefetch(batches)


def may_not_know(teacher: Teacher) -> bool:
    """Whether the teacher may cover only some tokens."""
    return not call_checked(teacher, "knows_all", of=bool)


def known_to(teacher: Teacher, batch: Batch) -> Tensor:
    """Which valid tokens of a batch a teacher covers, bool [valid]."""
    with _asking(teacher, "known", batch):
        known = teacher.known(batch)
    if known is None:
        return torch.ones_like(batch.valid, dtype=torch.bool)
    if (
        not isinstance(known, Tensor)
        or known.dtype != torch.bool
        or known.shape != batch.valid.shape
    ):
        shape = list(getattr(known, "shape", ()))
        said = f"{getattr(known, 'dtype', type(known).__name__)} of shape {shape}"
        raise _broken(teacher, "known", said, f"None or bools of shape {list(batch.valid.shape)}")
    return known


def may_skip(teacher: Teacher, *, own: bool) -> bool:
    """Whether it may not cover some tokens, over the student's ids or its own."""
    return may_not_know(teacher) or (own and has_own_vocabulary(teacher))


def has_own_vocabulary(teacher: Teacher) -> bool:
    """Whether its ids may differ from the student's."""
    return type(teacher).own_vocabulary is not Teacher.own_vocabulary


def own_vocabulary(teacher: Teacher, batch: Batch) -> OwnVocabulary:
    """A teacher's outputs over its own ids, checked; these may be the student's."""
    with _asking(teacher, "own_vocabulary", batch):
        found = teacher.own_vocabulary(batch)
    if found is None:
        return _in_our_ids(teacher, batch)
    wanted = (batch.valid.shape, torch.int64)
    if not isinstance(found, OwnVocabulary) or (found.spans.shape, found.spans.dtype) != wanted:
        expected = f"None or an OwnVocabulary with int64 spans of shape {list(batch.valid.shape)}"
        raise _broken(teacher, "own_vocabulary", type(found).__name__, expected)
    logits, nll = found.logits, found.nll

    def checked(positions: Tensor) -> Tensor:
        with _asking(teacher, "own_vocabulary", batch, positions):
            answer = logits(positions)
        return upcast(_checked(teacher, "own_vocabulary", answer, (len(positions), 1), batch))

    def checked_nll() -> Tensor:
        with _asking(teacher, "own_vocabulary", batch):
            answer = nll()
        return upcast(_checked(teacher, "own_vocabulary", answer, (len(batch.valid), 2), batch))

    return replace(found, logits=checked, nll=checked_nll)


def _in_our_ids(teacher: Teacher, batch: Batch) -> OwnVocabulary:
    known = known_to(teacher, batch).cpu()
    spans = torch.where(known, torch.arange(len(known)), -1)
    ids = torch.arange(batch.vocabulary, device=batch.valid.device)
    held: list[LogitsFn] = []

    def logits(positions: Tensor) -> Tensor:
        if not held:
            held.append(read(teacher, batch))
        return held[0](positions)

    def nll() -> Tensor:
        first = nll_from_logits(logits, batch)(batch.valid, batch.labels[batch.valid])
        return torch.stack([first, torch.zeros_like(first)], 1)

    return OwnVocabulary(spans, logits, nll, (ids, ids))


def _ids_known(teacher: Teacher) -> int | None:
    found: int | None = call_checked(teacher, "ids_known", of=(int, type(None)))
    return found


@contextmanager
def _asking(teacher: Teacher, method: str, batch: Batch, *more: Tensor) -> Iterator[None]:
    """Context of a call: no gradient, errors name the teacher, inputs must stay unchanged."""
    inputs = (*vars(batch).values(), *more)
    with (
        torch.no_grad(),
        plugin_errors(teacher, method),
        inputs_unchanged(teacher, method, *inputs),
    ):
        yield


def _set_eval_mode(teacher: Teacher) -> None:
    """Put models in a teacher's attributes into evaluation mode, in case it did not."""
    for held in vars(teacher).values():
        module = held if isinstance(held, nn.Module) else getattr(held, "model", None)
        if isinstance(module, nn.Module) and module.training:
            module.eval()


def _checked(
    teacher: Teacher, method: str, found: object, shape: tuple[int, ...], batch: Batch
) -> Tensor:
    """A teacher's result, checked and detached. The last axis may exceed the shared ids."""
    more = " or more" if len(shape) > 1 else ""
    expected = f"floating-point numbers of shape [{', '.join(map(str, shape))}{more}]"
    if not isinstance(found, Tensor):
        raise _broken(teacher, method, type(found).__name__, expected)
    fits = found.ndim == len(shape) and len(found) == shape[0] and found.shape[-1] >= shape[-1]
    if not fits or not found.is_floating_point():
        raise _broken(teacher, method, f"{found.dtype} of shape {list(found.shape)}", expected)
    wanted = batch.input_ids.device
    if found.device != wanted:
        raise _broken(teacher, method, f"a tensor on {found.device}", f"one on {wanted}")
    return found.detach()


def _checked_coarse(teacher: Teacher, found: object, positions: int, batch: Batch) -> SparseLogits:
    """The same for a teacher that covers only some ids."""
    if not isinstance(found, SparseLogits):
        raise _broken(teacher, "read", type(found).__name__, "a SparseLogits")
    ids, logs, tempered = found
    fits = ids.ndim == 2 and logs.shape == (len(ids), ids.shape[1] + 1) and len(ids) == positions
    if not fits or ids.dtype != torch.int64 or not 0 < ids.shape[1] < batch.vocabulary:
        said = f"a SparseLogits of {ids.dtype} {list(ids.shape)} and {list(logs.shape)}"
        expected = f"int64 [{positions}, k] and [{positions}, k + 1], k below {batch.vocabulary}"
        raise _broken(teacher, "read", said, expected)

    def checked(tensor: Tensor, *shape: int) -> Tensor:
        return upcast(_checked(teacher, "read", tensor, shape, batch))

    more = tempered and {at: checked(others, positions) for at, others in tempered.items()}
    return type(found)(ids, checked(logs, *logs.shape), more)


def _broken(teacher: Teacher, method: str, found: str, expected: str) -> PluginError:
    return PluginError(
        f"{describe_component(teacher)} gave {found} from {method}, expected {expected}"
    )


def load_teacher(run: Run, component: Component) -> None:
    """Load a teacher, or the teachers in a selection, with all nested ones, as a run does.

    For teachers that load their members themselves (`loads_members`), and for opened runs.
    """
    load_teachers(run, iter_components(component))


def numbered(teachers: Sequence[Teacher]) -> dict[str, Teacher]:
    """The teachers by their names in errors."""
    return {f"teacher {each.name!r} ({n})": each for n, each in enumerate(teachers, 1)}


def check_positions(teachers: Sequence[Teacher], device: torch.device, block: int) -> None:
    """Raise RunError if rows are longer than a teacher's maximum sequence length."""
    for name, config in _configs(teachers, device).items():
        reach = getattr(config, "max_position_embeddings", None)
        if reach is not None and block > reach:
            raise RunError(
                f"data.block = {block} is longer than the {reach} positions of the {name}; type "
                f"--set data.block={reach}, or take another teacher"
            )


def head_sizes(teachers: Sequence[Teacher], device: torch.device) -> Mapping[str, int]:
    """The vocabulary sizes of the teachers' heads, where their configs give them."""
    widths = {
        name: getattr(config, "vocab_size", None)
        for name, config in _configs(teachers, device).items()
    }
    return {name: width for name, width in widths.items() if width is not None}


def _configs(teachers: Sequence[Teacher], device: torch.device) -> Mapping[str, PretrainedConfig]:
    from transformers import PreTrainedConfig

    configs = {}
    for name, teacher in numbered(teachers).items():
        config = call_checked(teacher, "architecture", device, of=(PreTrainedConfig, type(None)))
        if config is not None:
            configs[name] = config.get_text_config()
    return configs


def teachers_in(components: Iterable[Component]) -> list[Teacher]:
    """The teachers among components, in order."""
    return [one for one in components if isinstance(one, Teacher)]


def reading_our_ids(components: Iterable[Component]) -> list[Teacher]:
    """The teachers among components that read the student's ids, in order."""
    teachers = teachers_in(components)
    others = {
        id(nested)
        for teacher in teachers
        if teacher.own_tokens
        for nested in iter_components(teacher)
        if nested is not teacher
    }
    return [each for each in teachers if id(each) not in others]


def load_teachers(run: Run, components: Iterable[Component]) -> None:
    """Load all teachers, nested ones included, except those that another teacher loads itself."""
    teachers = teachers_in(components)
    theirs = {
        id(nested)
        for teacher in teachers
        if teacher.loads_members
        for nested in iter_components(teacher)
        if nested is not teacher
    }
    for teacher in teachers:
        if id(teacher) not in theirs:
            with plugin_errors(teacher, "load"):
                teacher.load(run)
