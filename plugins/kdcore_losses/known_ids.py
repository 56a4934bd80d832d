"""Divergences for teachers that know only some ids of each position."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from kdcore import Stage, component
from kdcore_losses.base import ScaledDivergence, kl


@component
class Renormalised(ScaledDivergence):
    """KL(p' || q), where p' is the teacher's distribution over its known ids, renormalised.

    p' divides the k known probabilities by their sum and drops the mass of all other ids. With
    `over` "all", q covers all ids, as in DistillKit's default `zero` and axolotl's top-k KL. With
    "known", q is renormalised over the known ids too, as in TRL without a tail; the other ids are
    then unconstrained. The objective is biased: with "all" the student learns that the other ids
    are impossible. `kl` with a teacher that reports their total mass has no such bias.
    """

    name = "renormalised"
    over: Literal["all", "known"] = "all"

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject a teacher that knows all ids: there is no tail to drop."""
        teacher = recipe.teacher
        if teacher is not None and teacher.gives_logits() and teacher.ids_known() is None:
            yield (
                f"the loss 'renormalised' leaves out the ids that a teacher does not know, and "
                f'{teacher.name!r} knows all: wrap it in `cached` with kind = "topk"'
            )

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Over the known ids only: the last column holds the mass of all others."""
        log_p, log_q = log_p[..., :-1], log_q[..., :-1]
        if self.over == "known":
            log_q = log_q.log_softmax(-1)
        return kl(log_p.log_softmax(-1), log_q)

    def written(self, p: str, q: str) -> str:
        """KL_KNOWN(p, q, over)."""
        return f'KL_KNOWN({p}, {q}, "{self.over}")'
