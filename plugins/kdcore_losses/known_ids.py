"""Divergences for teachers that know some ids of each position and nothing of the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from kdcore import Stage, component
from kdcore_losses.base import ScaledDivergence, kl


@component
class Renormalised(ScaledDivergence):
    """KL(p' || q), where p' is the teacher's distribution over the ids it knows, without a tail.

    p' are the k probabilities divided by their sum; the mass of all other ids is dropped. With
    `over` "all" q is over all ids, as in DistillKit's default `zero` and axolotl's top-k KL; with
    "known" q too is divided by its mass on these ids, as in TRL without a tail, which lets all
    other ids go free. It is a biased objective: it teaches the student that the other ids are
    impossible. `kl` with a teacher that tells their mass has not that bias.
    """

    name = "renormalised"
    over: Literal["all", "known"] = "all"

    def faults(self, recipe: Stage) -> Iterable[str]:
        """A teacher of all ids has none to leave out."""
        teacher = recipe.teacher
        if teacher is not None and teacher.gives_logits() and teacher.ids_known() is None:
            yield (
                f"the loss 'renormalised' leaves out the ids that a teacher does not know, and "
                f'{teacher.name!r} knows all of them: wrap it in `cached` with kind = "topk"'
            )

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Over the known ids: the last bucket holds all others together."""
        log_p, log_q = log_p[..., :-1], log_q[..., :-1]
        if self.over == "known":
            log_q = log_q.log_softmax(-1)
        return kl(log_p.log_softmax(-1), log_q)

    def written(self, p: str, q: str) -> str:
        """KL_KNOWN(p, q, over)."""
        return f'KL_KNOWN({p}, {q}, "{self.over}")'
