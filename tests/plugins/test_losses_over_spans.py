"""Losses over spans: TRL's numbers, their authors' formula, and whole steps by hand.

The numbers are what ULDLoss of TRL 1.16.0 (experimental/gold/gold_trainer.py, "observed" merging,
as it gives them for logits that predict the tokens at their own place) gave for these logits, ids
and byte offsets in float64: the loss, its gradient at the two tokens of the second span, and the
sum of all its sizes.
"""

import engine
import given
import pytest
import torch
import torch.nn.functional as F
from kdcore_losses import (
    ApproximateLikelihoodMatching,
    CrossEntropy,
    ForwardKL,
    GeneralOnPolicyLogitDistillation,
    UniversalLogitDistillation,
)

from kdcore import LogitsFn, OwnVocabulary, RunError, Tokens
from kdcore.data.batch import TwoVocabularies
from kdcore.objective.losses import checked_values

pytestmark = pytest.mark.slow

STUDENT = [
    [-3.47, -0.56, -1.59, 1.5, -1.33, -1.91, -0.93],
    [-1.3, -1.94, 2.29, 0.49, 3.03, 1.7, -1.84],
    [0.11, 0.51, 0.23, -0.95, -1.89, -1.83, -1.9],
    [-1.68, 1.75, 1.39, 1.2, 0.32, 0.2, 2.81],
    [-0.46, 0.36, -2.02, 0.37, -0.02, -0.3, -2.48],
]
TEACHER = [
    [-1.0, -0.88, 4.25, 1.36, 1.42, -1.56],
    [1.46, -0.11, -0.58, -0.41, 1.33, 2.23],
    [-0.01, -1.15, 1.99, 0.09, -0.12, 0.27],
    [1.43, -2.64, 0.67, 0.81, 0.42, -0.77],
    [-2.2, 1.66, 0.41, -1.03, 1.33, 1.68],
    [0.9, -1.39, -1.97, 2.95, -0.06, -2.1],
]
LABELS, OTHERS = torch.tensor([3, 1, 5, 0, 6]), [2, 4, 0, 5, 1, 3]
SPANS = [([0], [0, 1]), ([1, 2], [2]), ([3], [3, 4]), ([4], [5])]
SHARED = torch.tensor([0, 1, 4, 6]), torch.tensor([2, 0, 3, 5])
THEIRS = {
    UniversalLogitDistillation(): (
        0.8953210427532854,
        [-4.392e-07, 6.1411e-05, -1.59127e-05, -2.6304e-06, -3.3352e-05, -8.8208e-06, -2.559e-07],
        [
            0.0018596113,
            0.002774214,
            0.0020967058,
            0.0006442731,
            0.000251671,
            -0.0078756421,
            0.0002491668,
        ],
        0.2109546142,
    ),
    GeneralOnPolicyLogitDistillation(): (
        0.24272980742145553,
        [
            -0.0001191316,
            -4.88562e-05,
            4.67782e-05,
            0.0002411293,
            -8.98147e-05,
            2.59304e-05,
            -5.60354e-05,
        ],
        [
            0.0006659461,
            0.0009934749,
            0.0007508522,
            0.0002307209,
            9.0126e-05,
            -0.0028203493,
            8.92292e-05,
        ],
        0.086532249,
    ),
    GeneralOnPolicyLogitDistillation(beta=0.0): (
        1.4679790249651292,
        [
            -0.1012698251,
            -0.013284253,
            0.0382247112,
            0.0065518992,
            0.0662887399,
            0.0211890004,
            -0.0177002725,
        ],
        [
            0.0344407975,
            0.0513796323,
            0.0388318907,
            0.0119322144,
            0.0046610551,
            -0.1458602668,
            0.0046146768,
        ],
        0.9398676896,
    ),
    GeneralOnPolicyLogitDistillation(beta=1.0, matched_weight=0.3): (
        0.47570308599379574,
        [
            -9.81166e-05,
            -3.91611e-05,
            -0.0006704978,
            0.0003793009,
            0.0008452689,
            -0.0003716753,
            -4.51191e-05,
        ],
        [
            0.0007184132,
            0.0010717465,
            0.0008100086,
            0.0002488984,
            9.72266e-05,
            -0.0030425525,
            9.62592e-05,
        ],
        0.2474650319,
    ),
}


def likelihoods(logits, labels):
    logits = torch.tensor(logits, dtype=torch.float64)
    return logits.log_softmax(-1).gather(1, torch.tensor(labels)[:, None])[:, 0]


class Given(Tokens):
    """The tokens of one step, which their term sees."""

    def student_nll(self):
        return -likelihoods(STUDENT, LABELS.tolist())

    def spans(self):
        return torch.tensor([n for n, (ours, _) in enumerate(SPANS) for _ in ours])

    def span_nll(self):
        log_p = likelihoods(TEACHER, OTHERS)
        found = torch.full((len(LABELS), 2), 7.0, dtype=torch.float64)
        for ours, theirs in SPANS:
            found[ours[0]] = -torch.stack([log_p[theirs[0]], log_p[theirs[1:]].sum()])
        return found

    def shared_ids(self):
        return SHARED

    def seen(self, loss):
        return torch.ones(len(LABELS), dtype=torch.bool)

    def count(self, loss):
        return torch.tensor(float(len(LABELS)))

    def over_step(self, values):
        return values

    def score(self, loss, teacher=None, prepared=None):
        student = torch.tensor(STUDENT, dtype=torch.float64)
        return loss.per_token_prepared(student, own(), LABELS, prepared)


def own():
    """The teacher's logits where a span begins; elsewhere something wild."""
    logits = torch.full((len(LABELS), 6), 3.0, dtype=torch.float64)
    for ours, theirs in SPANS:
        logits[ours[0]] = torch.tensor(TEACHER[theirs[0]], dtype=torch.float64)
    return logits


def mean_of(loss):
    student = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    teacher = TwoVocabularies(None, own())
    values = checked_values(loss, student, teacher, LABELS, prepared=loss.prepare(Given()))
    return values.mean(), student


@pytest.mark.parametrize("loss", THEIRS, ids=str)
def test_uld_and_gold_are_those_of_trl(loss):
    expected, first, later, total = THEIRS[loss]
    value, student = mean_of(loss)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(gradient[1], gradient.new_tensor(first), atol=1e-9, rtol=0)
    torch.testing.assert_close(gradient[2], gradient.new_tensor(later), atol=1e-9, rtol=0)
    assert gradient.abs().sum().item() == pytest.approx(total, abs=1e-8)


@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_alm_is_its_authors_formula(tau):
    """-(P log Q + (1 - P) log(1 - Q)) of P = p^(1/tau) and Q = q^(1/tau), less tokenkit's 1e-6."""
    value, student = mean_of(ApproximateLikelihoodMatching(tau=tau))
    (found,) = torch.autograd.grad(value, student)
    log_q = student.log_softmax(-1).gather(1, LABELS[:, None])[:, 0]
    log_p, chunks = likelihoods(TEACHER, OTHERS), []
    for ours, theirs in SPANS:
        p, q = ((each / tau - 1e-6).exp() for each in (log_p[theirs].sum(), log_q[ours].sum()))
        chunks.append(-(p * q.log() + (1 - p) * (1 - q).log()))
    expected = torch.stack(chunks).mean()
    (gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(found, gradient, atol=1e-12, rtol=1e-9)


class Spanned(engine.Held):
    """Reads pairs of tokens as one, and every third pair as two, with eleven ids of its own."""

    def __init__(self, model=None):
        if model is not None:
            super().__init__(model)

    table = torch.randn(64, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def own_vocabulary(self, batch):
        row = batch.document.flatten()[batch.valid]
        spans, at = [], 0
        for document in row.unique_consecutive():
            count = int((row == document).sum())
            spans += [at + n // 2 for n in range(count)]
            spans[-1] = -1  # what is no span
            at += count
        first = batch.input_ids.flatten()[batch.valid].double()
        nll = torch.stack([first / 30, first % 3], 1)
        ids = torch.arange(7), torch.arange(7).flip(0)
        logits: LogitsFn = lambda at: self.table[batch.input_ids.flatten()[at] % 64]  # noqa: E731
        return OwnVocabulary(torch.tensor(spans, dtype=torch.int64), logits, lambda: nll, ids)


def by_hand(model, rows, loss):
    """The mean over all spans of the step, by autograd over the logits of the whole step."""
    batch = engine.trainer(model, rows, [engine.term()]).collate(rows)
    proved = given.proved(model)
    logits = proved.logits(proved.states(batch))[batch.valid][:, : batch.vocabulary]
    labels = batch.labels[batch.valid]
    log_q = -F.cross_entropy(logits, labels, reduction="none")
    theirs = Spanned().own_vocabulary(batch)
    values = []
    for span in theirs.spans[theirs.spans >= 0].unique():
        tokens = (theirs.spans == span).nonzero()[:, 0]
        first, nll = tokens[:1], theirs.nll()[tokens[0]]
        if isinstance(loss, ApproximateLikelihoodMatching):
            values.append(loss.between(-nll.sum()[None], log_q[tokens].sum()[None]))
            continue
        q = logits[first].softmax(-1) * log_q[tokens[1:]].sum().exp()
        p = theirs.logits(batch.valid[first]).softmax(-1) * (-nll[1]).exp()
        values.append(loss.compare(q, p))
    return torch.autograd.grad(torch.cat(values).mean(), list(model.parameters()))


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize(
    "made",
    [
        UniversalLogitDistillation,
        GeneralOnPolicyLogitDistillation,
        ApproximateLikelihoodMatching,
    ],
)
def test_a_step_has_the_gradient_of_the_mean_over_its_spans(made, micro_batch):
    rows, loss = given.packed_rows(), made()
    student = given.model(double=True, seed=1)
    found = engine.step(
        given.model(double=True, seed=1),
        rows,
        [engine.term(loss)],
        teacher=Spanned(),
        micro_batch=micro_batch,
    )
    expected = by_hand(student, rows, loss)
    for (name, _), one in zip(student.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found.gradients[name], one, rtol=1e-8, atol=1e-12)


def test_terms_of_both_kinds_stand_in_one_recipe():
    """Each sees the teacher in the ids that it compares."""
    teacher = Spanned(given.model(double=True, seed=2))
    rows = given.packed_rows()
    losses = [CrossEntropy(), ForwardKL(), UniversalLogitDistillation()]
    terms = [engine.term(each) for each in (*losses, ApproximateLikelihoodMatching())]
    options = {"teacher": teacher, "micro_batch": 3}
    both = engine.step(given.model(double=True), rows, terms, **options)
    assert len(both.terms) == 4
    for term in terms:
        alone = engine.step(given.model(double=True), rows, [term], **options)
        assert both.terms[term.label] == pytest.approx(alone.terms[term.label], rel=1e-9)


def test_the_same_ids_make_every_token_a_span():
    """`uld` of a teacher with the student's ids is the sorted distance of each token."""
    rows = given.packed_rows()
    teacher = engine.Held(given.model(double=True, seed=2))
    loss = UniversalLogitDistillation()
    found = engine.step(given.model(double=True), rows, [engine.term(loss)], teacher=teacher)
    batch = engine.trainer(given.model(double=True), rows, [engine.term()]).collate(rows)
    sides = [given.proved(given.model(double=True, seed=n)) for n in (0, 2)]
    q, p = (
        each.logits(each.states(batch))[batch.valid][:, : batch.vocabulary].softmax(-1)
        for each in sides
    )
    assert found.terms["uld"] == pytest.approx(loss.compare(q, p).mean().item(), rel=1e-9)


def test_a_teacher_of_a_few_ids_is_refused():
    import kdcore

    table = {
        "student": {"config": {"model_type": "llama"}},
        "tokenizer": {"use": "bpe", "vocab_size": 300},
        "data": {"use": "stories", "block": 32, "stories": 20},
        "teacher": {"use": "cached", "kind": "topk", "teacher": {"use": "hf", "model": "x"}},
        "loss": [{"use": "uld"}],
        "train": {"lr": 1e-2, "steps": 3, "batch": 2},
    }
    with pytest.raises((kdcore.RecipeError, RunError), match="'uld' compares all ids"):
        kdcore.check(table)
