"""Losses: cross-entropy, and divergences between the teacher p and the student q.

Every divergence is computed in log space, between distributions at the loss's temperature T. An id
that the teacher excludes (logit -inf) gets log-probability -10,000, so that values and gradients
stay finite where the divergence is infinite.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Loss, hookimpl
from kdcore_losses.contrastive import DistiLLM2
from kdcore_losses.hidden_states import HiddenCosine, HiddenMse
from kdcore_losses.known_ids import Renormalised
from kdcore_losses.kullback_leibler import (
    AdaptiveKL,
    ForwardKL,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SymmetricKL,
)
from kdcore_losses.likelihood import CrossEntropy, SmoothedCrossEntropy
from kdcore_losses.on_policy import MiniLLM, OnPolicyDistillation
from kdcore_losses.other_tokens import (
    ApproximateLikelihoodMatching,
    GeneralOnPolicyLogitDistillation,
    UniversalLogitDistillation,
)
from kdcore_losses.others import AlphaBeta, EntropyOPD, JensenShannon, TotalVariation


@hookimpl
def kdcore_losses() -> Sequence[type[Loss]]:
    """The losses of this plugin."""
    return [
        CrossEntropy,
        SmoothedCrossEntropy,
        ForwardKL,
        ReverseKL,
        SkewKL,
        SkewReverseKL,
        JensenShannon,
        TotalVariation,
        SymmetricKL,
        AdaptiveKL,
        AlphaBeta,
        EntropyOPD,
        Renormalised,
        OnPolicyDistillation,
        MiniLLM,
        DistiLLM2,
        UniversalLogitDistillation,
        GeneralOnPolicyLogitDistillation,
        ApproximateLikelihoodMatching,
        HiddenMse,
        HiddenCosine,
    ]
