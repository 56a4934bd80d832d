"""What the engine and `oracle` are both given, and how their answers are compared."""

from functools import cache

import given
import oracle
import pytest
import tiny
import torch
from engine import Held, term
from given import VOCABULARY
from kdcore_ensemble import Ensemble
from kdcore_losses import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    EntropyOPD,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SymmetricKL,
    TotalVariation,
)
from kdcore_selections import Entropy, Hardest, Random, Rho

from kdcore.api.schedule import Schedule

ROWS = {"packed": given.packed_rows(), "single": given.single_rows()}
KINDS = tiny.KINDS
MICRO_BATCHES = (1, 3, 8)
LOSSES = {
    "ce": CrossEntropy(),
    "kl": ForwardKL(temperature=2.0),
    "kl, no T^2": ForwardKL(temperature=2.0, scale_by_t2=False),
    "reverse-kl": ReverseKL(temperature=0.7),
    "skew-kl": SkewKL(skew=0.3),
    "skew-reverse-kl": SkewReverseKL(temperature=2.0),
    "jsd": JensenShannon(beta=0.2),
    "jsd, normalised": JensenShannon(beta=0.9, temperature=3.0, normalise=True),
    "jsd at 1": JensenShannon(beta=1.0),
    "tvd": TotalVariation(temperature=2.0),
    "symmetric-kl": SymmetricKL(forward=0.3),
    "adaptive-kl": AdaptiveKL(temperature=2.0),
    "adaptive-kl of its authors": AdaptiveKL(head=0.7, form="authors"),
    "alpha-beta": AlphaBeta(temperature=2.0),
    "alpha-beta, beta 0": AlphaBeta(alpha=0.5, beta=0.0),
    "entropy-opd": EntropyOPD(threshold=2.0),
}
SHARE = 0.3
FLOAT32 = {"loss": 1e-6, "gradient": 1e-5}  # what float32 may be off by
MIXED = [  # terms of every kind: a schedule, and all three ways to see a selection
    term(ForwardKL(temperature=2.0), Schedule(start=2.0, end=0.5, until=0.5)),
    term(CrossEntropy(), 0.3, on="all"),
    term(TotalVariation(), Schedule(start=0.0, end=1.0), on="dropped"),
]


WHERE = [  # terms for some documents: by a text, a list, two columns, the source, and nobody
    term(ForwardKL(temperature=2.0), where={"domain": "math"}),
    term(CrossEntropy(), 0.3, where={"domain": ["code", "prose"]}),
    term(CrossEntropy(), 0.7, label="ce.2", where={"domain": "code", "level": [0, 1]}),
    term(TotalVariation(), where={"source": "student"}),
    term(ReverseKL(), where={"domain": "law"}),
]
WHERE_ON = [  # and with what a selection leaves
    *WHERE,
    term(CrossEntropy(), on="all", label="ce.3", where={"domain": "math"}),
    term(CrossEntropy(), 0.2, on="dropped", label="ce.4", where={"level": [0, 2, 3]}),
    term(CrossEntropy(), 0.1, label="ce.5"),
]


@cache
def model(kind="llama", seed=0, double=True, **options):
    return given.model(kind, seed=seed, double=double, **options)


def teacher_of(kind="llama", **options):
    """A teacher as the engine and as the oracle know it."""
    made = model(kind, seed=1, **options)
    return Held(made), oracle.model_teacher(made, VOCABULARY)


def ensemble(average, weights):
    """Two teachers in one, as the engine and as the oracle know it."""
    members = [model("gpt2", seed=1), model("llama", seed=2)]
    made = Ensemble(members=[Held(m) for m in members], average=average, weights=weights)
    form = oracle.mean_of_logits if average == "logits" else oracle.mixture
    known = [oracle.model_teacher(m, VOCABULARY) for m in members]
    return made, form(known, weights or [1.0, 1.0])


def selections(kind="llama"):
    """Every selection, and the scores that it is to rank by."""
    reference, known = Held(model(kind, seed=2)), oracle.model_teacher(model(kind, 2), VOCABULARY)
    return {
        "rho": (Rho(keep=SHARE, reference=reference), oracle.rho(known)),
        "hardest": (Hardest(keep=SHARE), oracle.hardest),
        "entropy": (Entropy(keep=SHARE), oracle.entropy_of("student")),
        "teacher's entropy": (Entropy(keep=SHARE, of="teacher"), oracle.entropy_of("teacher")),
        "random": (Random(keep=SHARE), oracle.random(seed=0, step=1)),
    }


@cache
def judged(kind, rows, selected=None, **options):
    """The oracle's answer to two terms, and with a selection to three."""
    scores = selections(kind)[selected][1] if selected else None
    return oracle.step(
        model(kind),
        ROWS[rows],
        MIXED if selected else MIXED[:2],
        vocabulary=VOCABULARY,
        teacher=teacher_of(kind)[1],
        scores=scores,
        share=SHARE,
        **options,
    )


def assert_equal(found, expected, *, loss=1e-10, gradient=1e-10, selected=False):
    assert found.valid == expected.tokens
    if selected:
        assert found.kept == expected.kept
    assert found.terms.keys() <= expected.terms.keys()
    for label, exact in expected.terms.items():
        assert found.terms.get(label, 0.0) == pytest.approx(exact, rel=loss, abs=loss), label
    for name, gradients in found.gradients.items():
        exact = expected.gradients.get(name)
        assert (gradients is None) == (exact is None), name
        if exact is not None:
            close = {"rtol": gradient, "atol": gradient}
            torch.testing.assert_close(gradients.double(), exact, **close)
