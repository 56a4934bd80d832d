"""Whether teachers suit the run, found out from their configs before any weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kdcore.blame import asked
from kdcore.errors import RunError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from kdcore.api import Teacher

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


def widths_of(teachers: Sequence[Teacher], device: torch.device) -> Mapping[str, int]:
    """The rows of the teachers' heads, where their configs say."""
    widths = {
        name: getattr(config, "vocab_size", None)
        for name, config in _configs(teachers, device).items()
    }
    return {name: width for name, width in widths.items() if width is not None}


def tell_habits(
    student: PreTrainedTokenizerBase, others: Mapping[str, PreTrainedTokenizerBase]
) -> None:
    """Warn where a teacher ends, pads or lays out texts otherwise than the student will.

    That the same ids mean the same strings is proved before; this is what they are used for.
    """
    for name, other in others.items():
        if differing := list(_habits(student, other)):
            _log.warning(
                "the %s is out of step with the student: %s. What it says at these places is about "
                "its own habit; a [tokenizer] of the teacher's model would agree",
                name,
                "; ".join(differing),
            )


def _habits(student: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Iterator[str]:
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
        config = asked(teacher, "architecture", device, of=(PreTrainedConfig, type(None)))
        if config is not None:
            configs[name] = config.get_text_config()
    return configs
