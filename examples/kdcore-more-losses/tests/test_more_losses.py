"""The losses of single tokens against their textbook formulas and the code they come from.

The numbers of others are what DistillKit (a61c2e7), KDFlow (3a7a21a), ABKD (df81318) and Liger
0.8.5 gave for these logits in float64, casts to float32 replaced.
"""

from types import SimpleNamespace

import pytest
import torch
from kdcore_more_losses import BDKD, Cosine, HierarchicalRanking, Hinge, Logistic, Top1CrossEntropy

from kdcore import Schedule
from kdcore.testing import check_loss

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


def drawn(n=6, vocabulary=12, seed=0):
    made = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, n, vocabulary, generator=made, dtype=torch.float64)
    return student.requires_grad_(), teacher


# Textbooks: loops over ids and pairs of them, for one token


def pairs(p, k):
    best = sorted(range(len(p)), key=lambda i: -p[i])[:k]
    return [(i, j) for i in best for j in best if p[i] > p[j]]


def hinge(student, teacher, k=8, margin=None):
    q, p = student.softmax(-1), teacher.softmax(-1)
    each = [
        torch.relu((p[i] - p[j] if margin is None else margin) - (q[i] - q[j]))
        for i, j in pairs(p, k)
    ]
    return sum(each) / len(each)


def logistic(student, teacher, k=8):
    each = [(1 + (student[j] - student[i]).exp()).log() for i, j in pairs(teacher.softmax(-1), k)]
    return sum(each) / len(each)


def hrl(student, teacher, k=5):
    q, p = student.softmax(-1), teacher.softmax(-1)
    ours, theirs = q.argsort(descending=True)[:k], p.argsort(descending=True)[:k]
    total = sum(torch.relu(q[i] - q[theirs[0]]) for i in theirs)
    for i in range(k):
        for j in range(k):
            if q[ours[i]] > p[ours[j]]:
                total = total + torch.relu(q[ours[j]] - q[theirs[i]])
    return total


def top1_ce(student, teacher, temperature=1.0):
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return -p.max() * q[p.argmax()].log()


def bdkd(student, teacher, emphasis=3.0):
    p, q = teacher.softmax(-1), student.softmax(-1)
    forward, reverse = ((a * (a / b).log()).sum() for a, b in ((p, q), (q, p)))
    h_p, h_q = (-(a * a.log()).sum() for a in (p, q))
    return (emphasis if h_p > h_q else 1) * forward + (emphasis if h_q > h_p else 1) * reverse


def cosine(student, teacher):
    return 1 - (student @ teacher) / (student.norm() * teacher.norm())


TEXTBOOK = [
    (Hinge(), hinge, {}),
    (Hinge(k=3, margin=0.3), hinge, {"k": 3, "margin": 0.3}),
    (Logistic(), logistic, {}),
    (Logistic(k=2), logistic, {"k": 2}),
    (HierarchicalRanking(), hrl, {}),
    (HierarchicalRanking(k=2), hrl, {"k": 2}),
    (Top1CrossEntropy(), top1_ce, {}),
    (Top1CrossEntropy(temperature=2.0), top1_ce, {"temperature": 2.0}),
    (BDKD(), bdkd, {}),
    (BDKD(emphasis=2.0), bdkd, {"emphasis": 2.0}),
    (Cosine(), cosine, {}),
]


@pytest.mark.parametrize(("loss", "textbook", "options"), TEXTBOOK, ids=lambda one: str(one)[:30])
def test_value_and_gradient_are_those_of_the_textbook(loss, textbook, options):
    student, teacher = drawn()
    values = loss.per_token(student, teacher, torch.zeros(len(student), dtype=torch.long))
    expected = torch.stack(
        [textbook(*each, **options) for each in zip(student, teacher, strict=True)]
    )
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(values.sum(), student),
        torch.autograd.grad(expected.sum(), student),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


OTHERS = [  # what others' code gave: the values, the gradient at the first token, its whole size
    (  # DistillKit sparse_hinge_loss
        Hinge(k=3),
        [0.2419113476, 0.5889909934, 0.3668934484, 0.040529477],
        [-0.1202334634, -0.0046522185, 0.1292610389, -0.0139760368, 0.0096006799],
        1.1926145463,
    ),
    (
        Hinge(k=3, margin=0.3),
        [0.3398606532, 0.5423549624, 0.2386596617, 0.079443655],
        [-0.1202334634, -0.0046522185, 0.1292610389, -0.0139760368, 0.0096006799],
        1.1926145463,
    ),
    (  # DistillKit sparse_logistic_ranking_loss
        Logistic(k=3),
        [0.6867977648, 1.3392943871, 0.7207026596, 0.168737074],
        [-0.3557714567, 0.0, 0.2494786852, 0.0, 0.1062927715],
        2.8133023007,
    ),
    (  # KDFlow compute_hierarchical_ranking_loss
        HierarchicalRanking(k=3),
        [1.0883744525, 1.489619012, 0.2641972051, 0.2594703859],
        [-0.4604009664, -0.0362028609, 0.6090661811, -0.0088311085, -0.1036312453],
        4.3379625759,
    ),
    (  # KDFlow compute_top1_ce
        Top1CrossEntropy(),
        [0.7521625147, 1.2419215387, 0.758065655, 0.217555586],
        [-0.3362752632, 0.0131452378, 0.2640291584, 0.0394904767, 0.0196103903],
        3.0470704547,
    ),
    (
        Top1CrossEntropy(temperature=2.0),
        [0.483894821, 0.677667254, 0.6088502656, 0.3119668864],
        [-0.1203981711, 0.0142713667, 0.0639598282, 0.0247358894, 0.0174310867],
        1.1201805868,
    ),
    (  # Liger LigerFusedLinearCosineSimilarityFunction.distillation_loss_fn
        Cosine(),
        [0.3699557485, 1.061944104, 0.5298246597, 0.6908666551],
        [-0.2111028141, -0.0007922793, 0.0015845586, 0.2115781816, -0.1340536541],
        3.0637900879,
    ),
    (  # ABKD bdkd: its value lacks the teacher's entropy
        BDKD(),
        None,
        [-0.9324928171, -0.1534625319, 1.2993171621, 0.1943370739, -0.4076988869],
        14.2194123908,
    ),
]


@pytest.mark.parametrize(("loss", "values", "first", "size"), OTHERS, ids=lambda one: str(one)[:30])
def test_they_are_those_of_others(loss, values, first, size):
    student, teacher = logits()
    found = loss.per_token(student, teacher, LABELS)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    if values is not None:
        torch.testing.assert_close(found, found.new_tensor(values), rtol=0, atol=1e-8)
    torch.testing.assert_close(gradient[0], gradient.new_tensor(first), rtol=0, atol=1e-8)
    assert float(gradient.abs().sum()) == pytest.approx(size, abs=1e-8)


@pytest.mark.parametrize("loss", [Hinge(), HierarchicalRanking(), BDKD(), Cosine()], ids=str)
def test_contract(loss):
    check_loss(loss)


@pytest.mark.parametrize("loss", [Hinge(margin=0.1), Logistic(), Top1CrossEntropy()], ids=str)
def test_contract_of_what_is_not_zero_at_equality(loss):
    check_loss(loss, zero_at_equality=False)


@pytest.mark.parametrize(
    "loss", [Hinge(k=4), Logistic(k=4), HierarchicalRanking(k=4), Top1CrossEntropy()], ids=str
)
def test_all_other_ids_together_are_no_id(loss):
    """Of a teacher that knows ids, the last logit stands for the others; here it is the largest."""
    student, teacher = drawn()
    teacher[:, -1] = teacher.amax(-1) + 2
    run = SimpleNamespace(teacher=SimpleNamespace(ids_known=lambda: 11))
    loss.kdcore_run_start(run)
    labels = torch.zeros(len(student), dtype=torch.long)
    swapped = teacher.clone()
    swapped[:, -1] = -torch.inf  # as an id of no mass it is in no pair either
    found = loss.per_token(student, teacher, labels)
    loss.kdcore_run_start(SimpleNamespace(teacher=SimpleNamespace(ids_known=lambda: None)))
    if isinstance(loss, Logistic):  # which looks at the order of the teacher's ids only
        torch.testing.assert_close(found, loss.per_token(student, swapped, labels))
    assert not torch.allclose(found, loss.per_token(student, teacher, labels))


def test_cosine_refuses_a_teacher_of_some_ids():
    teacher = SimpleNamespace(ids_known=lambda: 8, name="cached")
    (found,) = Cosine().faults(SimpleNamespace(teacher=teacher))
    assert found == "the loss 'cosine' needs logits, and 'cached' knows some ids only"


def test_a_temperature_may_follow_a_schedule():
    student, teacher = logits()
    cooling = Schedule(start=3.0, end=1.0)
    cooling.move(0.5)
    torch.testing.assert_close(
        Top1CrossEntropy(temperature=cooling).per_token(student, teacher, LABELS),
        Top1CrossEntropy(temperature=2.0).per_token(student, teacher, LABELS),
    )
