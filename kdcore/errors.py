"""Errors with a message for the user, and the exit code of each kind.

KdcoreError
├── UsageError         2   bad recipe or arguments; nothing ran
│   └── RecipeError    2   the errors of a recipe, each with its place
├── RunError           1   the run failed: non-finite loss, out of memory, hub unreachable
├── PluginError        3   a plugin broke its contract; names plugin and component
└── Interrupted        129 (a lost terminal), 130 (^C) or 143, with a checkpoint
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class KdcoreError(Exception):
    """An error with a message for the user; never shown with a traceback."""

    exit_code = 1


class UsageError(KdcoreError):
    """Bad arguments; nothing ran."""

    exit_code = 2


class RunError(KdcoreError):
    """The run failed for a reason outside the code of kdcore and plugins."""


class Unreachable(RunError):
    """A server does not respond. In a training step, this ends the run after a checkpoint."""


class ProcessLost(RunError):
    """Another process of the run ended, so this one does too; the other reports why."""


class StartAgain(RunError):
    """All processes of the run must restart; the run folder holds what they change."""

    exit_code = 75  # kdcore's launcher restarts them; under another one the user may


class PluginError(KdcoreError):
    """A plugin broke its contract. The message names plugin, component and error."""

    exit_code = 3


class Interrupted(KdcoreError):
    """A signal ended the run after a checkpoint."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Diagnostic:
    """One error of a recipe: its place, a message and a hint.

    `line` and `column` count from 1; `source` is the line of text; `file` is the recipe's path as
    typed, or `--set K=V` for an error on the command line (which has no lines to show).
    """

    message: str
    file: str
    line: int = 1
    column: int = 1
    source: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = "" if self.file.startswith("--") else f":{self.line}:{self.column}"
        said = f"{self.file}{place}: {self.message}"
        if self.source:
            said += f"\n    {self.source}\n    {' ' * (self.column - 1)}^"
        return said + (f"\n    {self.hint}" if self.hint else "")


class RecipeError(UsageError):
    """All errors of one recipe."""

    def __init__(self, errors: Sequence[Diagnostic]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = tuple(errors)

    @property
    def faults(self) -> tuple[Diagnostic, ...]:
        """The name of `errors` in kdcore 0.1; it works until 1.0."""
        text = "`RecipeError.faults` is now `RecipeError.errors`; the old name works until 1.0"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return self.errors


def did_you_mean(name: str, among: Iterable[str]) -> str:
    """`; did you mean 'kl'?`, or nothing."""
    names = list(among)
    same = [each for each in names if each.lower() == name.lower()]
    near = same or difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


_NO_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory, in torch's allocator, the driver or a library."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in _NO_MEMORY)
