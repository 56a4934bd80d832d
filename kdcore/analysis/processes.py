"""The memory of each of several GPU processes, with whole and with sharded models. Predicted.

Sharding divides weights, gradients and the optimizer's state by the number of processes. A process
also holds what is gathered: the head for the whole step, and two layers, as the next one is fetched
while one runs, with the gradients of one. Activations and logits stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALLOCATOR = 1.1  # measured on CPUs: allocated over requested bytes of temporary tensors
CARDS = (24, 40, 80)  # GB, 10^9 bytes
_SUM = 4  # bytes of a number whose gradient is reduced, in float32


@dataclass(frozen=True)
class ModelSize:
    """A frozen model, in bytes."""

    weights: int
    head: int
    layer: int  # the largest
    divides: bool = True  # False: quantised or offloaded weights cannot be sharded


@dataclass(frozen=True, kw_only=True)
class StudentSize:
    """The student, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    head: int
    head_gradient: int
    layer: int  # the largest, as gathered
    layer_numbers: int  # its trained parameters


@dataclass(frozen=True)
class StepSize:
    """A step of one process, in bytes."""

    peak: int  # with all gradients, of whole models
    passing: int  # activations, scores, logits
    casts: int = 0  # in both: copies of layers in half precision, which a sharded model gathers
    writing: int = 0  # the peak of generating rows


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of each of several processes; None: as before, nothing is sharded."""

    processes: int
    rows: int  # at once
    whole: int
    student: int | None  # the student sharded
    teachers: int | None  # its teachers too


def card_for(size: int, margin: float) -> int | None:
    """The smallest card that it fits on with this share to spare; None if it fits on none."""
    return next((card for card in CARDS if size <= card * 1e9 * (1 - margin)), None)


def memory_of(
    processes: int,
    rows: int,
    fixed: int,
    student: StudentSize,
    teachers: Sequence[ModelSize],
    step: StepSize,
) -> ProcessMemory:
    """Each process's memory. `fixed` is what no sharding divides."""
    teachers_whole = sum(each.weights for each in teachers)
    whole = fixed + student.weights + student.optimizer + teachers_whole
    # DDP reduces gradients in buckets of its own, which together are as large.
    buckets = student.gradients if processes > 1 else 0
    needed = max(step.peak, student.gradients, step.writing)
    unsharded = whole + round((needed + buckets) * ALLOCATOR)
    if processes == 1:
        return ProcessMemory(1, rows, unsharded, None, None)
    own = fixed + (student.weights + student.optimizer) // processes
    passing = _sharded_step(processes, student, step)
    gathered = student.head + 2 * student.layer
    alone = own + teachers_whole + round((passing + gathered) * ALLOCATOR)
    together = None
    if any(each.divides for each in teachers):
        kept = sum(e.weights // processes if e.divides else e.weights for e in teachers)
        heads = sum(each.head for each in teachers if each.divides)
        layers = 2 * max(student.layer, *(each.layer for each in teachers if each.divides))
        held = student.head + heads + layers
        together = own + kept + round((passing + held) * ALLOCATOR)
    return ProcessMemory(processes, rows, unsharded, alone, together)


def _sharded_step(processes: int, student: StudentSize, step: StepSize) -> int:
    """The peak of a step with a part of the gradients; the head's are whole until its end."""
    kept = student.gradients // processes + student.head_gradient
    behind = max(0, step.peak - step.casts - student.gradients) + kept
    within = max(0, step.passing - step.casts) + kept
    return max(behind, within + student.layer + _SUM * student.layer_numbers, step.writing)
