"""Losses beside the code of others: numbers that their functions gave for these logits, in float64.

Where that code casts to float32, it was run with float64 in its place. The numbers come from TRL
1.16.0 (GKDTrainer.generalized_jsd_loss; the sampled-token loss of IWOPDTrainer with gamma 0; the
divergence without a tail of server_distillation), TRL 1.14.2 (MiniLLMTrainer, which 1.16.0 has no
more), ABKD at df81318, DistillKit at a61c2e7 and DistiLLM-2 at fe4cf9b (get_batch_logps).
"""

import pytest
import torch
from kdcore_losses import (
    AdaptiveKL,
    DistiLLM2,
    ForwardKL,
    JensenShannon,
    MiniLLM,
    OnPolicyDistillation,
    Renormalised,
    ReverseKL,
)

from kdcore import Tokens
from kdcore.data.batch import SparseLogits
from kdcore.objective.losses import checked_values, temperature_of

STUDENT = [
    [0.5, -1.0, 2.0, 0.1, -0.6],
    [1.5, 0.2, -0.4, 0.9, -2.0],
    [-0.3, 0.8, 0.0, 1.1, 0.4],
    [2.2, -0.7, 0.3, -1.4, 1.0],
]
TEACHER = [
    [1.2, -0.5, 1.0, -0.9, 0.3],
    [0.1, 1.9, 0.6, -1.2, -0.2],
    [0.7, 0.3, -0.8, 2.4, -1.5],
    [1.8, 0.4, 1.3, -0.6, -2.1],
]
LABELS = torch.tensor([2, 1, 3, 0])


def logits():
    student, teacher = (torch.tensor(each, dtype=torch.float64) for each in (STUDENT, TEACHER))
    return student.requires_grad_(), teacher


def assert_same(values, student, expected, first, total):
    """The values, their sum's gradient at the first token, and the sum of all its sizes."""
    (gradient,) = torch.autograd.grad(values.sum(), student)
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(values.detach(), values.new_tensor(expected), **close)
    torch.testing.assert_close(gradient[0], gradient.new_tensor(first), **close)
    assert float(gradient.abs().sum()) == pytest.approx(total, abs=1e-9)


JSD = {  # by beta and temperature
    (0.0, 1.0): (
        [0.360296266, 0.9833220381, 0.4120999087, 0.4005342157],
        [-0.2461126314, -0.0389311203, 0.3445573635, 0.0515349691, -0.1110485809],
        3.5829624982,
    ),
    (0.1, 1.0): (
        [0.0316836231, 0.0860792532, 0.0374697571, 0.035594563],
        [-0.0210624866, -0.0034387714, 0.0293217146, 0.0043856084, -0.009206065],
        0.3026049798,
    ),
    (0.5, 1.0): (
        [0.0831028449, 0.2343404527, 0.1123380171, 0.1008922223],
        [-0.051324472, -0.0091049042, 0.0706461295, 0.010566444, -0.0207831972],
        0.7452635954,
    ),
    (0.5, 2.0): (
        [0.022755989, 0.0739468028, 0.0394876472, 0.0489949796],
        [-0.0123618305, -0.0044459583, 0.0185407337, 0.0071704623, -0.0089034072],
        0.2625005716,
    ),
    (0.9, 2.0): (
        [0.0082471085, 0.0279556483, 0.0150036771, 0.0201147083],
        [-0.004478992, -0.001676149, 0.0066918835, 0.0025880259, -0.0031247684],
        0.0995871035,
    ),
    (1.0, 2.0): (
        [0.091940466, 0.3170580205, 0.1701096563, 0.2355447135],
        [-0.0499968479, -0.0188790043, 0.0746414265, 0.0288669017, -0.0346324759],
        1.1500124136,
    ),
}


@pytest.mark.parametrize(("beta", "temperature"), JSD)
def test_jsd_is_that_of_trl(beta, temperature):
    student, teacher = logits()
    loss = JensenShannon(beta=beta, temperature=temperature, scale_by_t2=False)
    values = loss.per_token(student, teacher, LABELS)
    assert_same(values, student, *JSD[beta, temperature])


AKL = {
    0.5: (
        [0.3376781101, 1.0693508851, 0.5098147119, 0.5303255251],
        [-0.2102969274, -0.037371904, 0.2901612137, 0.0433990121, -0.0858913945],
        3.6380209633,
    ),
    0.8: (
        [0.3519495828, 1.0591217086, 0.5098147119, 0.5303255251],
        [-0.2328957125, -0.0383557293, 0.3244837807, 0.048532591, -0.10176493],
        3.7312066659,
    ),
}


@pytest.mark.parametrize("bound", AKL)
def test_adaptive_kl_of_its_authors_is_that_of_abkd(bound):
    student, teacher = logits()
    loss = AdaptiveKL(head=bound, form="authors")
    assert_same(loss.per_token(student, teacher, LABELS), student, *AKL[bound])


ZERO = {  # DistillKit with k = 3 and missing_probability_handling "zero", by temperature
    1.0: (
        [0.5144884745, 1.1414969614, 0.558437604, 0.4682509165],
        [-0.3003020284, 0.0332632402, 0.3001908376, 0.0999282962, -0.1330803456],
        3.7960700841,
    ),
    2.0: (
        [0.3958813962, 0.6096384626, 0.5032948905, 0.4293147983],
        [-0.0963595426, 0.0473783437, 0.0343901336, 0.0821186572, -0.0675275919],
        1.4927020834,
    ),
}
WITHOUT_TAIL = (  # TRL, k = 3, loss_add_tail = False
    [0.3715512293, 0.7999301611, 0.2096455987, 0.2270934991],
    [-0.2773954744, 0.0, 0.4028508905, 0.0, -0.1254554161],
    3.1210577112,
)
WITH_TAIL = (  # DistillKit, k = 3, "symmetric_uniform"
    [0.3274540208, 0.8172674814, 0.4056323792, 0.3116141654],
    [-0.2461126314, 0.0031476839, 0.3445573635, 0.0094561649, -0.1110485809],
    3.3259873292,
)


def of_three_ids(loss):
    """Its values, from a teacher that knows three ids and the mass of the others."""
    student, teacher = logits()
    logs, ids = teacher.log_softmax(-1).topk(3)

    def others(temperature):
        outside = teacher.log_softmax(-1).scatter(1, ids, -torch.inf) / temperature
        return temperature * outside.logsumexp(-1)

    buckets = torch.cat([logs, others(1.0)[:, None]], -1)
    sparse = SparseLogits(ids, buckets, {loss.temperature: others(loss.temperature)})
    return checked_values(loss, student, sparse, LABELS, temperature_of(loss)), student


@pytest.mark.parametrize("temperature", ZERO)
def test_renormalised_is_the_default_of_distillkit(temperature):
    loss = Renormalised(temperature=temperature, scale_by_t2=False)
    assert_same(*of_three_ids(loss), *ZERO[temperature])


def test_renormalised_on_both_sides_is_trl_without_a_tail():
    assert_same(*of_three_ids(Renormalised(over="known")), *WITHOUT_TAIL)


def test_kl_of_known_ids_is_that_of_distillkit_with_a_tail():
    assert_same(*of_three_ids(ForwardKL()), *WITH_TAIL)


class Answer(Tokens):
    """One answer of four tokens, which its term sees."""

    step = 1
    row = document = torch.zeros(4, dtype=torch.int64)

    def student_nll(self):
        return -logits()[0].detach().log_softmax(-1).gather(1, LABELS[:, None])[:, 0]

    def nll(self, teacher=None):
        return -logits()[1].log_softmax(-1).gather(1, LABELS[:, None])[:, 0]

    def seen(self, loss):
        return torch.ones(4, dtype=torch.bool)

    def count(self, loss):
        return torch.tensor(4.0)

    def by_document(self, values):
        return values.double().sum().expand(4)

    def over_step(self, values):
        return values

    def __init__(self, source="data"):
        self.source = source

    def column(self, name):
        return torch.zeros(4, dtype=torch.int64)

    def categories(self, name):
        return [self.source]


def total(*losses, source="data"):
    """The mean over the answer of all of them."""
    student, teacher = logits()
    values = [
        loss.per_token_prepared(student, teacher, LABELS, loss.prepare(Answer(source)))
        if hasattr(loss, "prepare")
        else loss.per_token(student, teacher, LABELS)
        for loss in losses
    ]
    return sum(values).mean(), student


def test_opd_has_the_gradient_of_trl():
    """TRL's value is the log-likelihood times the advantage, which is no estimate of anything."""
    value, student = total(OnPolicyDistillation())
    (gradient,) = torch.autograd.grad(value, student)
    first = [-0.0270233243, -0.0060297187, 0.0601626021, -0.018114276, -0.0089952832]
    torch.testing.assert_close(gradient[0], gradient.new_tensor(first), rtol=0, atol=1e-9)
    assert float(gradient.abs().sum()) == pytest.approx(1.0534221244, abs=1e-9)


MINILLM = {  # TRL's single-step term and its policy gradient
    # gamma = 0: the advantage is the token's own
    (ReverseKL, OnPolicyDistillation): (
        [-0.075562055, -0.0151970114, 0.1265738701, -0.0081812343, -0.0276335693],
        1.8031447904,
    ),
    # gamma = 1 without length normalisation: the return begins with the token itself
    (MiniLLM, OnPolicyDistillation): (
        [-0.0011631839, 0.0014036206, -0.0390619206, 0.0416898204, -0.0028683365],
        1.7533287402,
    ),
}


@pytest.mark.parametrize("made", MINILLM, ids=lambda made: made[0].name)
def test_minillm_of_trl_is_a_sum_of_two_losses(made):
    exact, opd = made
    first = exact(length_normalised=False) if exact is MiniLLM else exact()
    value, student = total(first, opd())
    (gradient,) = torch.autograd.grad(value, student)
    expected, size = MINILLM[made]
    torch.testing.assert_close(gradient[0], gradient.new_tensor(expected), rtol=0, atol=1e-9)
    assert float(gradient.abs().sum()) == pytest.approx(size, abs=1e-9)


DISTILLM2 = {  # by who wrote, and the mean gap that its authors' code was given
    ("teacher", None): (
        0.4239333168,
        [-0.0452149374, -0.0076017786, 0.0626355484, 0.0093683125, -0.0191871449],
        0.6440936456,
    ),
    ("student", None): (
        0.4567168157,
        [-0.0438041403, -0.0081846004, 0.0599879139, 0.0089723094, -0.0169714826],
        0.7451892723,
    ),
    ("teacher", 0.15): (
        0.4745990075,
        [-0.0522628734, -0.0085567394, 0.0727124957, 0.0108755076, -0.0227683905],
        0.749332038,
    ),
    ("student", -0.15): (
        0.5336769623,
        [-0.0460198677, -0.0086430473, 0.0629944104, 0.009421987, -0.0177534825],
        0.82077515,
    ),
}


@pytest.mark.parametrize(("source", "gap"), DISTILLM2)
def test_distillm2_is_that_of_its_authors(source, gap):
    """Their code lets the gradient go through the skew of an answer; here the gradient is theirs
    for that skew as a constant."""
    loss = DistiLLM2(adaptive=gap is not None)
    if gap is not None:
        loss.load_state_dict({"gaps": torch.tensor([gap, gap], dtype=torch.float64)})
    value, student = total(loss, source=source)
    (gradient,) = torch.autograd.grad(value, student)
    expected, first, size = DISTILLM2[source, gap]
    assert float(value.detach()) == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(gradient[0], gradient.new_tensor(first), rtol=0, atol=1e-9)
    assert float(gradient.abs().sum()) == pytest.approx(size, abs=1e-9)
