"""Whether teachers fit the student: positions, heads, tokenizers, temperatures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from kdcore.api.contracts import Loss, Teacher
from kdcore.errors import RunError
from kdcore.guard import call_checked

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_log = logging.getLogger("kdcore")


def numbered(teachers: Sequence[Teacher]) -> dict[str, Teacher]:
    """The teachers by what errors call them."""
    return {f"teacher {each.name!r} ({n})": each for n, each in enumerate(teachers, 1)}


def check_positions(teachers: Sequence[Teacher], device: torch.device, block: int) -> None:
    """Refuse rows that are longer than the positions of a teacher reach."""
    for name, config in _configs(teachers, device).items():
        reach = getattr(config, "max_position_embeddings", None)
        if reach is not None and block > reach:
            raise RunError(
                f"data.block = {block} is longer than the {reach} positions of the {name}; type "
                f"--set data.block={reach}, or take another teacher"
            )


def head_sizes(teachers: Sequence[Teacher], device: torch.device) -> Mapping[str, int]:
    """The rows of the teachers' heads, where their configs say."""
    widths = {
        name: getattr(config, "vocab_size", None)
        for name, config in _configs(teachers, device).items()
    }
    return {name: width for name, width in widths.items() if width is not None}


def warn_tokenizer_mismatch(
    student: PreTrainedTokenizerBase, others: Mapping[str, PreTrainedTokenizerBase]
) -> None:
    """Warn where a teacher ends, pads or lays out texts otherwise than the student will.

    That the same ids mean the same strings is proved before; this is what they are used for.
    """
    for name, other in others.items():
        if differing := list(_mismatches(student, other)):
            _log.warning(
                "the %s is out of step with the student: %s. What it says at these places is about "
                "its own habit; a [tokenizer] of the teacher's model would agree",
                name,
                "; ".join(differing),
            )


def tell_untempered(teacher: Teacher | None, losses: Iterable[Loss]) -> None:
    """Warn where losses ask a teacher of k ids for a temperature that it says nothing about."""
    if teacher is None or call_checked(teacher, "ids_known", of=(int, type(None))) is None:
        return
    for loss in losses:
        for at in call_checked(loss, "temperatures", of=Sequence) if loss.needs_teacher else ():
            if call_checked(teacher, "knows_others_at", at, of=(bool, type(None))) is None:
                _log.warning(
                    "the teacher %r does not tell the mass of the ids that it does not know at "
                    "temperature %g: the loss %r tempers its masses at temperature 1, which is "
                    "another objective; `knows_others_at` and `SparseLogits.tempered` would "
                    "tell it",
                    *(teacher.name, at, loss.name),
                )


def _mismatches(student: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Iterator[str]:
    if student.eos_token_id != other.eos_token_id:
        yield f"texts end with {student.eos_token!r} here, with {other.eos_token!r} there"
    # A tokenizer without a pad token has nothing to disagree about.
    pads = (student.pad_token_id, other.pad_token_id)
    if None not in pads and pads[0] != pads[1]:
        yield f"the pad token is {student.pad_token!r} here, {other.pad_token!r} there"
    templates = (student.chat_template, other.chat_template)
    if None not in templates and templates[0] != templates[1]:
        yield "the chat templates differ, and dialogues are laid out by the student's"


def _configs(teachers: Sequence[Teacher], device: torch.device) -> Mapping[str, PretrainedConfig]:
    from transformers import PreTrainedConfig

    configs = {}
    for name, teacher in numbered(teachers).items():
        config = call_checked(teacher, "architecture", device, of=(PreTrainedConfig, type(None)))
        if config is not None:
            configs[name] = config.get_text_config()
    return configs
