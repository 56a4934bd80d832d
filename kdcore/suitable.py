"""Whether teachers suit the run, found out from their configs before any weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdcore.blame import asked
from kdcore.errors import RunError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from kdcore.api import Teacher


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


def _configs(teachers: Sequence[Teacher], device: torch.device) -> Mapping[str, PretrainedConfig]:
    from transformers import PreTrainedConfig

    configs = {}
    for name, teacher in numbered(teachers).items():
        config = asked(teacher, "architecture", device, of=(PreTrainedConfig, type(None)))
        if config is not None:
            configs[name] = config.get_text_config()
    return configs
