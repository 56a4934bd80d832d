"""A teacher that knows some tokens only: terms that need it see and count these."""

from types import SimpleNamespace

import engine
import given
import oracle
import pytest
import torch
from cases import SHARE, assert_equal, model, teacher_of
from given import VOCABULARY
from kdcore_losses import (
    CrossEntropy,
    DistiLLM2,
    ForwardKL,
    MiniLLM,
    OnPolicyDistillation,
    ReverseKL,
)

from kdcore import PluginError
from kdcore.data.batch import columns_of
from kdcore.objective.teachers import known_to
from kdcore.testing import make_batch

ROWS = given.rows_with_columns()
TERMS = [
    engine.term(ForwardKL(temperature=2.0)),
    engine.term(CrossEntropy(), 0.3),
    engine.term(ReverseKL(), where={"level": [0, 1]}),
]
KNOWN = {"domain": "math"}
SEEN = [  # the same by documents: what the oracle knows
    engine.term(ForwardKL(temperature=2.0), where=KNOWN),
    engine.term(CrossEntropy(), 0.3),
    engine.term(ReverseKL(), where=KNOWN | {"level": [0, 1]}),
]


class OfMath(engine.Held):
    """Knows documents of one domain; elsewhere it says something wild."""

    def known(self, batch):
        found = torch.from_numpy(columns_of(batch).matches(KNOWN))
        return found[batch.valid]

    def read(self, batch):
        right, known = super().read(batch), torch.zeros(batch.labels.numel(), dtype=torch.bool)
        known[batch.valid] = self.known(batch)
        return lambda positions: torch.where(known[positions][:, None], right(positions), 1e4)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_terms_that_need_it_count_what_it_knows(micro_batch):
    _, known = teacher_of()
    teacher = OfMath(model("llama", seed=1))
    found = engine.step(model(), ROWS, TERMS, teacher=teacher, micro_batch=micro_batch)
    expected = oracle.step(model(), ROWS, SEEN, vocabulary=VOCABULARY, teacher=known)
    assert expected.terms["kl"] and expected.terms["reverse-kl"]
    assert_equal(found, expected)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize("loss", [OnPolicyDistillation, MiniLLM, DistiLLM2])
def test_losses_that_prepare_see_what_it_knows(loss, micro_batch):
    """A teacher that knows all, and a term for these documents: the same, beside a term of all."""
    options = {"micro_batch": micro_batch}
    terms = [engine.term(CrossEntropy(), 0.3), engine.term(loss())]
    found = engine.step(model(), ROWS, terms, teacher=OfMath(model("llama", seed=1)), **options)
    teacher = engine.Held(model("llama", seed=1))
    terms = [engine.term(CrossEntropy(), 0.3), engine.term(loss(), where=KNOWN)]
    expected = engine.step(model(), ROWS, terms, teacher=teacher, **options)
    assert expected.terms[loss.name]
    assert found.terms == pytest.approx(expected.terms, rel=1e-12)
    for one, other in zip(found.gradients.values(), expected.gradients.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("micro_batch", [3, 8])
def test_its_scores_elsewhere_are_never_kept(micro_batch):
    teacher, kept = OfMath(model("llama", seed=1)), []

    def keep(tokens):
        scores = tokens.nll(), tokens.score(ForwardKL())
        kept.extend(scores)
        return tokens.top(scores[0], SHARE)

    found = engine.step(
        model(),
        ROWS,
        [TERMS[1]],
        teacher=teacher,
        selection=engine.Keeps(keep),
        micro_batch=micro_batch,
    )
    math = {
        (token.row, token.position)
        for token in oracle.matching(
            list(oracle.tokens_of(ROWS, model(), None, VOCABULARY)),
            ROWS,
            SimpleNamespace(where=KNOWN),
        )
    }
    assert found.kept <= math
    assert all(int(scores.isfinite().sum()) == len(math) for scores in kept)


@pytest.mark.parametrize("gave", [torch.ones(3), torch.ones(2, dtype=torch.bool), [True]])
def test_what_it_knows_is_checked(gave):
    teacher = OfMath(model("llama", seed=1))
    teacher.known = lambda batch: gave
    with pytest.raises(PluginError, match=r"from known, expected None or bools of shape \[3\]"):
        known_to(teacher, make_batch([[1, 2, 3, 4]]))
