"""The losses that see a whole step, and the selection: textbooks, and the code they come from.

The numbers are what TRL 1.16.0 (IWOPDTrainer) and AdaKD (3b9be1b) gave in float64.
"""

import math

import pytest
import torch
from kdcore_more_losses import AdaKD, ImportanceWeightedOPD, Position
from test_more_losses import LABELS, logits

from kdcore import Tokens
from kdcore.testing import check_loss, check_selection


class Step(Tokens):
    """What a step tells of some tokens: by default one answer of four."""

    def __init__(
        self, student, teacher, labels, row=None, document=None, step=1, seen=None, old=None
    ):
        self.logits, self._labels, self.step = (student, teacher), labels, step
        self.old = torch.full((len(labels),), math.nan).double() if old is None else old
        zeros = torch.zeros_like(labels)
        self._row, self._document = (zeros if each is None else each for each in (row, document))
        self._seen = torch.ones_like(labels, dtype=torch.bool) if seen is None else seen

    labels = property(lambda self: self._labels)
    row = property(lambda self: self._row)
    document = property(lambda self: self._document)

    def _nll(self, logits):
        return -logits.detach().log_softmax(-1).gather(1, self.labels[:, None])[:, 0]

    def student_nll(self):
        return self._nll(self.logits[0])

    def old_log_probs(self):
        return self.old

    def nll(self, teacher=None):
        return self._nll(self.logits[1])

    def score(self, loss, teacher=None):
        return loss.per_token(self.logits[0].detach(), self.logits[1], self.labels)

    def over_step(self, values):
        return values

    def seen(self, loss):
        return self._seen

    def count(self, loss):
        return self._seen.sum().double()


def value_of(loss, step):
    """The term's mean, and its gradient in the student's logits."""
    student = step.logits[0].detach().requires_grad_()
    prepared = loss.prepare(step)
    values = loss.per_token_prepared(student, step.logits[1], step.labels, prepared)
    total = (values * step.seen(loss)).sum() / step.count(loss)
    (gradient,) = torch.autograd.grad(total, student)
    return total.detach(), gradient


IW_OPD = {  # TRL _compute_iw_opd_loss: the gradient at the first token, and the size of all of it
    0.0: (
        [-0.0270233243, -0.0060297187, 0.0601626021, -0.018114276, -0.0089952832],
        1.0534221244,
    ),
    0.5: (
        [-0.0405349864, -0.009044578, 0.0902439032, -0.0271714139, -0.0134929248],
        1.4047983295,
    ),
}


@pytest.mark.parametrize("gamma", IW_OPD)
def test_iw_opd_has_the_gradient_of_trl(gamma):
    student, teacher = logits()
    _, gradient = value_of(ImportanceWeightedOPD(gamma=gamma), Step(student, teacher, LABELS))
    first, size = IW_OPD[gamma]
    torch.testing.assert_close(gradient[0], gradient.new_tensor(first), rtol=0, atol=1e-9)
    assert float(gradient.abs().sum()) == pytest.approx(size, abs=1e-9)


def several(seed=0, n=9, vocabulary=7):
    """Three answers in two rows, one token of which the term does not see."""
    made = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, n, vocabulary, generator=made, dtype=torch.float64)
    labels = torch.randint(vocabulary, (n,), generator=made)
    row = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])
    document = torch.tensor([4, 4, 4, 7, 7, 7, 7, 7, 7])
    seen = torch.ones(n, dtype=torch.bool)
    seen[1] = False
    return Step(student, teacher, labels, row, document, seen=seen)


ANSWERS = [[0, 1, 2], [3, 4], [5, 6, 7, 8]]


def test_iw_opd_weighs_along_each_answer():
    step, loss = several(), ImportanceWeightedOPD(gamma=0.7)
    advantage = (step.student_nll() - step.nll()) * step.seen(loss)
    weights = torch.empty_like(advantage)
    for answer in ANSWERS:
        sizes = advantage[answer].abs()
        for n, token in enumerate(answer):
            weights[token] = 1 + 0.7 * (1 - sizes[:n].sum() / sizes.sum())
    torch.testing.assert_close(loss.prepare(step)[:, 1], weights * advantage)


def test_iw_opd_takes_the_student_that_drew_the_token_where_that_is_known():
    student, teacher = logits()
    drew = torch.tensor([-0.5, -1.5, math.nan, -2.5], dtype=torch.float64)
    step = Step(student, teacher, LABELS, old=drew)
    leaf = student.detach().requires_grad_()
    log_q = leaf.log_softmax(-1).gather(1, LABELS[:, None])[:, 0]
    log_p = teacher.log_softmax(-1).gather(1, LABELS[:, None])[:, 0]
    old = torch.where(drew.isnan(), log_q.detach(), drew)
    size = (log_p - old).abs()
    gone = size.cumsum(0) - size
    weight = 1 + 0.5 * (1 - gone / size.sum())
    total = -((log_q - old).exp() * weight * (log_p - old)).mean()
    (expected,) = torch.autograd.grad(total, leaf)
    value, gradient = value_of(ImportanceWeightedOPD(), step)
    torch.testing.assert_close(value, total.detach())
    torch.testing.assert_close(gradient, expected)


def test_iw_opd_of_a_student_that_is_its_teacher_learns_nothing():
    student, _ = logits()
    value, gradient = value_of(
        ImportanceWeightedOPD(), Step(student.detach(), student.detach(), LABELS)
    )
    assert (float(value), float(gradient.abs().max())) == (0.0, 0.0)


ADAKD = {1.0: 0.6345220794, 0.75: 0.7421879276, 0.5: 0.8237914786}  # by the share of hard tokens


@pytest.mark.parametrize("ratio", ADAKD)
def test_adakd_has_the_value_of_its_authors(ratio):
    student, teacher = logits()
    loss = AdaKD()
    loss.load_state_dict({"now": torch.tensor([math.nan, math.nan, ratio], dtype=torch.float64)})
    value, gradient = value_of(loss, Step(student.detach(), teacher, LABELS))
    assert float(value) == pytest.approx(ADAKD[ratio], abs=1e-9)
    leaf = student.detach().requires_grad_()
    (expected,) = torch.autograd.grad(adakd(leaf, teacher, ratio), leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def adakd(student, teacher, ratio, scale=0.5):
    """Token by token, with temperatures that are constants."""
    q, p = student.detach().softmax(-1), teacher.softmax(-1)
    hard = ((q.sqrt() - p.sqrt()) ** 2).sum(-1).sqrt() / math.sqrt(2)
    chosen = hard.argsort(descending=True)[: max(1, int(len(hard) * ratio))]
    median, total = hard[chosen].median(), 0.0
    for n in chosen:
        at = (-scale * (hard[n] / median).log().tanh()).exp()
        q, p = (student[n] / at).softmax(-1), (teacher[n] / at).softmax(-1)
        total = total + at**2 * (q * (q / p).log()).sum()
    return total / len(chosen)


def test_adakd_looks_at_the_tokens_of_its_term_only():
    step, loss = several(), AdaKD()
    prepared = loss.prepare(step)
    assert prepared[1, 1] == 0
    assert (prepared[step.seen(loss), 1] == 1).all()


def losses_of(values):
    """Steps whose steering loss takes these values: logits of two ids."""
    steps = []
    for number, value in enumerate(values, 1):
        student = torch.zeros(4, 2, dtype=torch.float64)
        # KL((.5, .5) || p) = value
        p = (1 - math.sqrt(1 - math.exp(-2 * value))) / 2
        teacher = torch.tensor([[p, 1 - p]] * 4, dtype=torch.float64).log()
        steps.append(Step(student, teacher, torch.zeros(4, dtype=torch.long), step=number))
    return steps


def ratios(loss, steps):
    found = []
    for step in steps:
        loss.prepare(step)
        found.append(float(loss.state_dict()["now"][2]))
    return found


def test_the_focus_narrows_as_the_loss_falls_and_widens_as_it_rises():
    loss = AdaKD(decay=0.0, warmup=1, rate=0.2, tolerance=0.1)
    found = ratios(loss, losses_of([1.0, 1.0, 0.8, 0.78, 0.6, 0.9, 0.9, 2.0]))
    # of the last changes: 1.0 (a change at 0.8), 0.8 (at 0.6), 0.6 (at 0.9), 0.9 (at 2.0)
    assert found == pytest.approx([1, 1, 0.8, 0.8, 0.64, 0.768, 0.768, 0.9216])


def test_the_focus_stays_between_its_ends():
    falling = AdaKD(decay=0.0, warmup=0, rate=0.5, least=0.3)
    assert ratios(falling, losses_of([1.0, 0.5, 0.2, 0.1]))[-1] == 0.3
    rising = AdaKD(decay=0.0, warmup=0, rate=0.5)
    assert ratios(rising, losses_of([0.1, 0.5, 1.0])) == [1.0, 1.0, 1.0]


def test_a_step_that_is_prepared_again_changes_nothing():
    steps = losses_of([1.0, 0.8, 0.6, 0.4])
    once, twice = AdaKD(decay=0.5, warmup=0), AdaKD(decay=0.5, warmup=0)
    for step in steps:
        once.prepare(step)
        torch.testing.assert_close(twice.prepare(step), twice.prepare(step), rtol=0, atol=0)
    assert once.state_dict()["now"].equal(twice.state_dict()["now"])


def test_a_resumed_run_continues_identically():
    steps = losses_of([1.0, 0.8, 0.6, 0.4, 0.2])
    whole, first, second = (AdaKD(decay=0.5, warmup=0) for _ in range(3))
    ratios(whole, steps)
    ratios(first, steps[:2])
    second.load_state_dict(first.state_dict())
    ratios(second, steps[2:])
    assert whole.state_dict()["now"].equal(second.state_dict()["now"])


def test_a_teacher_of_k_ids_cannot_serve_temperatures_of_tokens():
    assert AdaKD().temperatures() == []


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 3, 5, 6]),  # shares 0, 1/3, 2/3; 0, 1/2; 0, 1/4, 1/2, 3/4
        ({"to": 0.5}, [0, 1, 3, 5, 6]),
        ({"from": 0.5, "to": 1.0}, [2, 4, 7, 8]),
        ({"to": 1.0}, list(range(9))),
    ],
)
def test_position_keeps_a_range_of_each_answer(options, kept):
    assert Position(**options).keep(several()).nonzero()[:, 0].tolist() == kept


@pytest.mark.parametrize("loss", [ImportanceWeightedOPD(), AdaKD()], ids=str)
def test_contract(loss):
    check_loss(loss)


def test_position_keeps_the_contract_and_refuses_an_empty_range():
    check_selection(Position())
    (found,) = Position(**{"from": 0.6, "to": 0.4}).faults(None)
    assert found == "from = 0.6 is not below to = 0.4: no token stands between"
