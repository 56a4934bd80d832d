"""Every loss against its textbook formula in float64, its limits, and its behaviour at extremes."""

import math

import pytest
import textbook
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcore_losses import kdcore_losses
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
from kdcore_losses.others import AlphaBeta, EntropyOPD, JensenShannon, TotalVariation
from pydantic import ValidationError
from textbook import AB, AKL, CE, CE_ALL, KL, KL_KNOWN, TV, H

from kdcore import Loss, component
from kdcore.testing import check_loss

TEXTBOOK = [
    (CrossEntropy(), lambda p, q, y: CE(q(1), y)),
    (SmoothedCrossEntropy(), lambda p, q, y: 0.9 * CE(q(1), y) + 0.1 * CE_ALL(q(1))),
    (SmoothedCrossEntropy(smoothing=0.0), lambda p, q, y: CE(q(1), y)),
    (SmoothedCrossEntropy(smoothing=1.0), lambda p, q, y: CE_ALL(q(1))),
    (ForwardKL(), lambda p, q, y: KL(p(1), q(1))),
    (ForwardKL(temperature=2.0), lambda p, q, y: 4 * KL(p(2), q(2))),
    (ForwardKL(temperature=2.0, scale_by_t2=False), lambda p, q, y: KL(p(2), q(2))),
    (ReverseKL(), lambda p, q, y: KL(q(1), p(1))),
    (ReverseKL(temperature=0.5), lambda p, q, y: 0.25 * KL(q(0.5), p(0.5))),
    (SkewKL(), lambda p, q, y: KL(p(1), 0.1 * p(1) + 0.9 * q(1))),
    (SkewKL(skew=0.0), lambda p, q, y: KL(p(1), q(1))),
    (SkewKL(skew=0.7, temperature=3.0), lambda p, q, y: 9 * KL(p(3), 0.7 * p(3) + 0.3 * q(3))),
    (SkewReverseKL(), lambda p, q, y: KL(q(1), 0.9 * p(1) + 0.1 * q(1))),
    (SkewReverseKL(skew=0.0), lambda p, q, y: KL(q(1), p(1))),
    (
        SkewReverseKL(skew=0.3, temperature=2.0),
        lambda p, q, y: 4 * KL(q(2), 0.7 * p(2) + 0.3 * q(2)),
    ),
    (JensenShannon(), lambda p, q, y: _jsd(p(1), q(1), 0.5)),
    (JensenShannon(beta=0.9, temperature=2.0), lambda p, q, y: 4 * _jsd(p(2), q(2), 0.9)),
    (JensenShannon(beta=0.1, normalise=True), lambda p, q, y: _jsd(p(1), q(1), 0.1) / 0.09),
    (JensenShannon(beta=0.0), lambda p, q, y: KL(p(1), q(1))),
    (JensenShannon(beta=1.0, normalise=True), lambda p, q, y: KL(q(1), p(1))),
    (TotalVariation(), lambda p, q, y: TV(p(1), q(1))),
    (TotalVariation(temperature=2.0), lambda p, q, y: TV(p(2), q(2))),
    (SymmetricKL(), lambda p, q, y: (KL(p(1), q(1)) + KL(q(1), p(1))) / 2),
    (SymmetricKL(forward=0.8), lambda p, q, y: 0.8 * KL(p(1), q(1)) + 0.2 * KL(q(1), p(1))),
    (AdaptiveKL(), lambda p, q, y: AKL(p(1), q(1), 0.5)),
    (AdaptiveKL(head=0.8, temperature=2.0), lambda p, q, y: 4 * AKL(p(2), q(2), 0.8)),
    (AdaptiveKL(form="authors"), lambda p, q, y: AKL(p(1), q(1), authors=0.5)),
    (
        AdaptiveKL(form="authors", head=0.9, temperature=2.0),
        lambda p, q, y: 4 * AKL(p(2), q(2), authors=0.9),
    ),
    (EntropyOPD(), lambda p, q, y: KL(q(1), p(1)) + (H(p(1)) > 0.8) * KL(p(1), q(1))),
    (
        EntropyOPD(threshold=1.5, temperature=2.0),
        lambda p, q, y: 4 * (KL(q(2), p(2)) + (H(p(2)) > 1.5) * KL(p(2), q(2))),
    ),
    (EntropyOPD(threshold=0.0), lambda p, q, y: KL(q(1), p(1)) + KL(p(1), q(1))),
    (Renormalised(over="known"), lambda p, q, y: KL_KNOWN(p(1), q(1), "known")),
    (AlphaBeta(), lambda p, q, y: AB(p(1), q(1), 0.2, 0.7)),
    (AlphaBeta(alpha=1.0, beta=1.0, temperature=2.0), lambda p, q, y: 4 * AB(p(2), q(2), 1, 1)),
    (AlphaBeta(alpha=0.5, beta=0.0), lambda p, q, y: AB(p(1), q(1), 0.5, 0)),
    (AlphaBeta(alpha=0.0, beta=1.5), lambda p, q, y: AB(p(1), q(1), 0, 1.5)),
    (AlphaBeta(alpha=0.0, beta=0.0), lambda p, q, y: AB(p(1), q(1), 0, 0)),
]
TO_ALL_IDS = [  # which are not 0 at equality: the student gives the others something
    (Renormalised(), lambda p, q, y: KL_KNOWN(p(1), q(1), "all")),
    (Renormalised(temperature=2.0), lambda p, q, y: 4 * KL_KNOWN(p(2), q(2), "all")),
]
IN_ORDER = Renormalised  # of which the last id stands for others
LOSSES = [loss for loss, _ in TEXTBOOK]
DIVERGENCES = [loss for loss in LOSSES if loss.needs_teacher]


def _name(loss):
    return loss.formula() if isinstance(loss, Loss) else ""


def _jsd(p, q, beta):
    m = beta * p + (1 - beta) * q
    return beta * KL(p, m) + (1 - beta) * KL(q, m)


def logits(*shape, seed=0, spread=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=generator, dtype=dtype)


def drawn(n=7, vocabulary=13, **options):
    student, teacher = (logits(n, vocabulary, seed=seed, **options) for seed in (1, 2))
    return student, teacher, torch.arange(n) % vocabulary


def gradient(values, student):
    return torch.autograd.grad(values.sum(), student)[0]


def value_and_gradient(loss, student, teacher, labels):
    leaf = student.clone().requires_grad_()
    values = loss.per_token(leaf, teacher, labels)
    return values.detach(), gradient(values, leaf)


@pytest.mark.parametrize(("loss", "formula"), [*TEXTBOOK, *TO_ALL_IDS], ids=_name)
def test_value_and_gradient_are_those_of_the_textbook(loss, formula):
    student, teacher, labels = drawn()
    leaf = student.clone().requires_grad_()
    expected = formula(
        lambda temperature: (teacher / temperature).softmax(-1),
        lambda temperature: (leaf / temperature).softmax(-1),
        labels,
    )
    values, slope = value_and_gradient(loss, student, teacher, labels)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slope, gradient(expected, leaf), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", [*LOSSES, *(loss for loss, _ in TO_ALL_IDS)], ids=_name)
def test_formula_says_what_is_computed(loss):
    student, teacher, labels = drawn()
    said = textbook.evaluate(loss.formula(), student, teacher, labels)
    torch.testing.assert_close(loss.per_token(student, teacher, labels), said, rtol=1e-6, atol=1e-6)


def test_formulas_read_well():
    assert ForwardKL(temperature=2.0).formula() == "4 * KL(p(2), q(2))"
    assert SkewKL(skew=0.7).formula() == "KL(p(1), 0.7 * p(1) + 0.3 * q(1))"
    assert JensenShannon(normalise=True).formula() == (
        "(0.5 * KL(p(1), 0.5 * p(1) + 0.5 * q(1)) + 0.5 * KL(q(1), 0.5 * p(1) + 0.5 * q(1))) / 0.25"
    )
    assert SymmetricKL(forward=0.7).formula() == "(0.7 * KL(p(1), q(1)) + 0.3 * KL(q(1), p(1)))"


@pytest.mark.parametrize("loss", LOSSES, ids=_name)
def test_contract(loss):
    check_loss(loss)


@pytest.mark.parametrize("loss", [loss for loss, _ in TO_ALL_IDS], ids=_name)
def test_contract_of_what_is_not_zero_at_equality(loss):
    check_loss(loss, zero_at_equality=False)


@pytest.mark.parametrize("loss", DIVERGENCES, ids=_name)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**30), spread=st.floats(0.01, 20), vocabulary=st.integers(2, 40))
def test_never_negative_and_zero_at_equality(loss, seed, spread, vocabulary):
    student, teacher = (logits(3, vocabulary, seed=seed + n, spread=spread) for n in (0, 1))
    labels = torch.zeros(3, dtype=torch.long)
    assert (loss.per_token(student, teacher, labels) >= -1e-10).all()
    values, slope = value_and_gradient(loss, student, student.clone(), labels)
    assert values.abs().max() < 1e-10
    assert slope.abs().max() < 1e-10


@pytest.mark.parametrize("loss", LOSSES, ids=_name)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**30), shift=st.floats(-50, 50))
def test_neither_shifted_logits_nor_the_order_of_ids_matter(loss, seed, shift):
    student, teacher = (logits(3, 9, seed=seed + n) for n in (0, 1))
    labels = torch.tensor([0, 4, 8])
    values = loss.per_token(student, teacher, labels)
    torch.testing.assert_close(loss.per_token(student + shift, teacher - shift, labels), values)
    if isinstance(loss, IN_ORDER):
        return
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        loss.per_token(student[:, order], teacher[:, order], order.argsort()[labels]), values
    )


@pytest.mark.parametrize("spread", [0.0, 1.0, 200.0])
@pytest.mark.parametrize("loss", DIVERGENCES, ids=_name)
def test_finite_where_the_teacher_excludes_ids(loss, spread):
    student, teacher, labels = drawn(spread=spread, dtype=torch.float32)
    teacher[:, ::3] = -math.inf
    for temperature in (0.05, 1.0, 10.0):
        loss = type(loss)(**{**vars(loss), "temperature": temperature})
        for given_teacher in (
            teacher,
            student.clone().masked_fill(teacher == -math.inf, -math.inf),
        ):
            values, slope = value_and_gradient(loss, student, given_teacher, labels)
            assert values.isfinite().all()
            assert slope.isfinite().all()
            assert (values >= -1e-4).all()


def test_excluded_ids_do_not_change_what_is_finite():
    student, teacher, labels = drawn()
    teacher[:, ::3] = -math.inf
    p, q = teacher.softmax(-1), student.softmax(-1)
    m = 0.1 * q + 0.9 * p
    values = SkewReverseKL().per_token(student, teacher, labels)
    torch.testing.assert_close(values, (q * (q / m).log()).sum(-1), rtol=1e-10, atol=1e-10)
    finite = torch.where(p > 0, p * (p / q).log(), 0).sum(-1)
    values = ForwardKL().per_token(student, teacher, labels)
    torch.testing.assert_close(values, finite, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES, ids=_name)
def test_float32_is_close_to_float64(loss):
    student, teacher, labels = drawn(vocabulary=3000)
    exact = value_and_gradient(loss, student, teacher, labels)
    rounded = value_and_gradient(loss, student.float(), teacher.float(), labels)
    for one, other in zip(rounded, exact, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5)


POWERS = [AlphaBeta(alpha=0.1, beta=0.0), AlphaBeta(alpha=0.0, beta=0.1)]


@pytest.mark.parametrize("apart", [0.0, 1e-3, 1e-2])
@pytest.mark.parametrize("loss", [*DIVERGENCES, *POWERS], ids=_name)
def test_float32_keeps_its_digits_where_the_student_is_near_its_teacher(loss, apart):
    student, noise, labels = drawn(vocabulary=3000, dtype=torch.float32)
    teacher = student + apart * noise
    exact = loss.per_token(student.double(), teacher.double(), labels)
    rounded, slope = value_and_gradient(loss, student, teacher, labels)
    noticed = 1e-6 * loss.temperature**2
    torch.testing.assert_close(rounded, exact.float(), rtol=2e-3, atol=noticed)
    if not apart:
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=_name)
def test_compiles_as_one_graph(loss):
    student, teacher, labels = drawn(dtype=torch.float32)

    def total(logits):
        return loss.per_token(logits, teacher, labels).sum()

    compiled = torch.compile(torch.func.grad(total), fullgraph=True, backend="aot_eager")
    expected = value_and_gradient(loss, student, teacher, labels)[1]
    torch.testing.assert_close(compiled(student), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("near", "limit", "within"),
    [
        (SkewKL(skew=1e-6), ForwardKL(), 1e-4),
        (SkewReverseKL(skew=1e-6), ReverseKL(), 1e-4),
        (JensenShannon(beta=1e-6, normalise=True), ForwardKL(), 1e-4),
        (JensenShannon(beta=1 - 1e-6, normalise=True), ReverseKL(), 1e-4),
        (AlphaBeta(alpha=1.0, beta=1e-6), ForwardKL(), 1e-4),
        (AlphaBeta(alpha=1e-6, beta=1.0), ReverseKL(), 1e-4),
        (AlphaBeta(alpha=1e-4, beta=1e-4), AlphaBeta(alpha=0.0, beta=0.0), 1e-2),
        (AlphaBeta(alpha=1.0, beta=0.0), ForwardKL(), 1e-12),
        (AlphaBeta(alpha=0.0, beta=1.0), ReverseKL(), 1e-12),
        (SymmetricKL(forward=1.0), ForwardKL(), 1e-12),
        (SymmetricKL(forward=0.0), ReverseKL(), 1e-12),
        (AdaptiveKL(head=1 - 1e-9), ForwardKL(), 1e-6),
    ],
    ids=_name,
)
def test_limits(near, limit, within):
    given = drawn(spread=1.0)
    torch.testing.assert_close(near.per_token(*given), limit.per_token(*given), rtol=within, atol=0)


def test_limits_are_exact_where_an_option_is_at_its_end():
    given = drawn()
    for at_end, limit in [
        (SkewKL(skew=0.0), ForwardKL()),
        (SkewReverseKL(skew=0.0), ReverseKL()),
        (JensenShannon(beta=0.0), ForwardKL()),
        (JensenShannon(beta=1.0), ReverseKL()),
    ]:
        assert at_end.per_token(*given).equal(limit.per_token(*given))


def test_jsd_shrinks_towards_its_ends_unless_normalised():
    given = drawn()
    ratio = ForwardKL().per_token(*given) / JensenShannon(beta=0.001).per_token(*given)
    assert (ratio > 500).all()


def test_half_and_half_alpha_beta_is_four_times_squared_hellinger():
    student, teacher, labels = drawn()
    hellinger = (student.softmax(-1).sqrt() - teacher.softmax(-1).sqrt()).square().sum(-1) / 2
    values = AlphaBeta(alpha=0.5, beta=0.5).per_token(student, teacher, labels)
    torch.testing.assert_close(values, 4 * hellinger)


def test_adaptive_weights_carry_no_gradient_and_tied_ids_go_together():
    flat = torch.zeros(1, 4, dtype=torch.float64)
    student = logits(1, 4)
    # All ids are alike, so no tail is light enough: all is head, and the loss is forward KL.
    values = AdaptiveKL().per_token(student, flat, torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(values, KL(flat.softmax(-1), student.softmax(-1)))


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (ForwardKL, {"temperature": 0.0}),
        (ForwardKL, {"temperature": -1.0}),
        (ForwardKL, {"temperature": math.inf}),
        (ForwardKL, {"temperature": math.nan}),
        (ForwardKL, {"temperature": "2"}),
        (ForwardKL, {"scale_by_t2": 1}),
        (ForwardKL, {"skew": 0.1}),
        (TotalVariation, {"scale_by_t2": True}),
        (CrossEntropy, {"temperature": 2.0}),
        (SkewKL, {"skew": 1.0}),
        (SkewKL, {"skew": -0.1}),
        (SkewReverseKL, {"skew": math.nan}),
        (JensenShannon, {"beta": 1.1}),
        (SymmetricKL, {"forward": 2.0}),
        (AdaptiveKL, {"head": 1.0}),
        (AdaptiveKL, {"head": 0.0}),
        (AlphaBeta, {"alpha": -0.5}),
        (AlphaBeta, {"beta": math.inf}),
        (AdaptiveKL, {"form": "theirs"}),
        (EntropyOPD, {"threshold": -0.1}),
        (Renormalised, {"over": "some"}),
    ],
)
def test_options_out_of_range_are_refused(made, options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        made(**options)


def test_hook_kdcore_losses():
    names = "ce kl reverse-kl skew-kl skew-reverse-kl jsd tvd symmetric-kl adaptive-kl alpha-beta"
    names += " entropy-opd renormalised opd minillm distillm2 smoothed-ce"
    names += " hidden-mse hidden-cosine uld gold alm"
    assert sorted(loss.name for loss in kdcore_losses()) == sorted(names.split())


# Faults of earlier code: each of these tests passes with our loss and fails with the faulty form.


@component
class BatchMean(Loss):
    """`batchmean` divides by the rows only, so a longer row counts for more."""

    name = "batchmean"

    def per_token(self, student, teacher, labels):
        return F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")


@component
class LogOfMixture(Loss):
    """The mixture underflows to 0, and its logarithm is -inf."""

    name = "log-of-mixture"

    def per_token(self, student, teacher, labels):
        p, q = teacher.softmax(-1), student.softmax(-1)
        return (p * (teacher.log_softmax(-1) - (0.1 * p + 0.9 * q).log())).sum(-1)


def test_bug_batchmean_is_not_a_value_for_each_token():
    check_loss(ForwardKL())
    with pytest.raises(AssertionError, match=r"returned torch\.float32 of shape \(\)"):
        check_loss(BatchMean())


def test_bug_log_of_a_mixture_underflows():
    student, teacher = torch.tensor([[0.0, -10, -120]]), torch.tensor([[0.0, -5, -130]])
    labels = torch.zeros(1, dtype=torch.long)
    values = SkewKL(skew=0.1).per_token(student, teacher, labels)
    torch.testing.assert_close(values, torch.tensor([0.00905]), rtol=1e-3, atol=0)
    assert LogOfMixture().per_token(student, teacher, labels).isnan().all()
    with pytest.raises(AssertionError, match="is not finite"):
        check_loss(LogOfMixture())


def test_bug_dropping_t2_weakens_the_gradient():
    def strength(loss):
        return value_and_gradient(loss, *drawn(spread=0.1))[1].norm()

    usual = strength(ForwardKL())
    torch.testing.assert_close(strength(ForwardKL(temperature=4.0)), usual, rtol=0.1, atol=0)
    dropped = strength(ForwardKL(temperature=4.0, scale_by_t2=False))
    torch.testing.assert_close(16 * dropped, usual, rtol=0.1, atol=0)


@pytest.mark.parametrize(("skewed", "limit"), [(SkewKL, ForwardKL), (SkewReverseKL, ReverseKL)])
def test_bug_skew_on_the_other_side(skewed, limit):
    given = drawn(spread=1.0)
    unskewed = limit().per_token(*given)
    ours, other = (skewed(skew=skew).per_token(*given) / unskewed for skew in (0.01, 0.99))
    assert (ours > 0.5).all()
    assert (other < 0.05).all()
