"""Asking a teacher, whoever wrote it: without gradient, unrounded, cut to the shared ids, checked.

Nesting teachers ask their members through here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcore.api import Teacher
from kdcore.batch import AnswersAt, Batch, LogitsAt
from kdcore.blame import asked, blame, described, unwritten
from kdcore.coarse import Coarse
from kdcore.errors import PluginError, UsageError
from kdcore.head import chunk_size
from kdcore.products import unrounded

_IN_CACHE = 2**20  # numbers, of 4 bytes, that stay in the cache of a core


def read(teacher: Teacher, batch: Batch) -> LogitsAt:
    """Let a teacher read a batch, and check and cut all that it says of it.

    What comes back gives logits [n, batch.vocabulary] at flat positions [n], in float32 or above.
    A teacher that knows some ids only is refused.
    """
    known = _ids_known(teacher)
    if known is not None:
        raise UsageError(
            f"teacher {teacher.name!r} knows {known} ids of each position and not the others: "
            "losses can learn from it where it is the recipe's [teacher], and nothing else"
        )
    return cast(LogitsAt, answers(teacher, batch))


def answers(teacher: Teacher, batch: Batch) -> AnswersAt:
    """As `read`, for whoever can do with a teacher that knows some ids only."""
    if not asked(teacher, "gives_logits", of=bool):
        raise UsageError(
            f"teacher {teacher.name!r} knows losses only and gives no logits: it can be the "
            "reference of a selection, but no loss can learn from its distribution"
        )
    _still(teacher)
    with _asking(teacher, "read", batch):
        at = teacher.read(batch)
    if not callable(at):
        raise _broken(teacher, "read", type(at).__name__, "a function of flat positions")

    def answer(positions: Tensor) -> Tensor | Coarse:
        with _asking(teacher, "read", batch, positions):
            found = at(positions)
        if _ids_known(teacher) is not None:
            return _checked_coarse(teacher, found, len(positions), batch)
        checked = _checked(teacher, "read", found, (len(positions), batch.vocabulary), batch)
        return unrounded(checked[:, : batch.vocabulary])

    return answer


def read_nll(teacher: Teacher, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """A teacher's negative log-likelihoods: flat positions [n], labels [n] -> [n]."""
    _still(teacher)
    with _asking(teacher, "nll", batch):
        at = teacher.nll(batch)
    if not callable(at):
        expected = "a function of flat positions and labels"
        raise _broken(teacher, "nll", type(at).__name__, expected)

    def nll(positions: Tensor, labels: Tensor) -> Tensor:
        with _asking(teacher, "nll", batch, positions, labels):
            found = at(positions, labels)
        return unrounded(_checked(teacher, "nll", found, (len(positions),), batch))

    return nll


def nll_from_logits(logits_at: LogitsAt, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """Negative log-likelihoods from logits that are made a chunk of positions at a time."""
    device = batch.labels.device
    size = chunk_size(batch.vocabulary, device)
    if device.type == "cpu":
        size *= 2  # no second copy of the logits is made, and larger products are faster ones

    def nll(positions: Tensor, labels: Tensor) -> Tensor:
        pieces = zip(torch.split(positions, size), torch.split(labels, size), strict=True)
        return torch.cat([nll_of(logits_at(some), label) for some, label in pieces])

    return torch.no_grad()(nll)


def nll_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [n, V], labels [n] -> negative log-likelihoods [n].

    On a CPU a few rows at a time, whose probabilities stay in its cache: the same bits, twice as
    fast.
    """
    on_cpu = logits.device.type == "cpu"
    rows = max(1, _IN_CACHE // logits.shape[-1] if on_cpu else len(logits))
    pieces = zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    return torch.cat([F.cross_entropy(some, label, reduction="none") for some, label in pieces])


def _ids_known(teacher: Teacher) -> int | None:
    found: int | None = asked(teacher, "ids_known", of=(int, type(None)))
    return found


@contextmanager
def _asking(teacher: Teacher, method: str, batch: Batch, *more: Tensor) -> Iterator[None]:
    """While it answers: without gradient, and without a change to what others will read."""
    inputs = (*vars(batch).values(), *more)
    with torch.no_grad(), blame(teacher, method), unwritten(teacher, method, *inputs):
        yield


def _still(teacher: Teacher) -> None:
    """Put the models that a teacher holds into evaluation mode, where it forgot to."""
    for held in vars(teacher).values():
        module = held if isinstance(held, nn.Module) else getattr(held, "model", None)
        if isinstance(module, nn.Module) and module.training:
            module.eval()


def _checked(
    teacher: Teacher, method: str, found: object, shape: tuple[int, ...], batch: Batch
) -> Tensor:
    """What a teacher gave, detached. A head may have more rows than there are shared ids."""
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


def _checked_coarse(teacher: Teacher, found: object, positions: int, batch: Batch) -> Coarse:
    """The same of a teacher that knows some ids only."""
    if not isinstance(found, Coarse):
        raise _broken(teacher, "read", type(found).__name__, "a Coarse")
    ids, logs = found
    fits = ids.ndim == 2 and logs.shape == (len(ids), ids.shape[1] + 1) and len(ids) == positions
    if not fits or ids.dtype != torch.int64 or not 0 < ids.shape[1] < batch.vocabulary:
        said = f"a Coarse of {ids.dtype} {list(ids.shape)} and {list(logs.shape)}"
        expected = f"int64 [{positions}, k] and [{positions}, k + 1], k below {batch.vocabulary}"
        raise _broken(teacher, "read", said, expected)
    checked = _checked(teacher, "read", logs, tuple(logs.shape), batch)
    return Coarse(ids, unrounded(checked))


def _broken(teacher: Teacher, method: str, found: str, expected: str) -> PluginError:
    return PluginError(f"{described(teacher)} gave {found} from {method}, expected {expected}")
