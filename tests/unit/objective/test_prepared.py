"""Losses that prepare a step, and selections that weigh."""

import math

import engine
import given
import pytest
import torch
import torch.nn.functional as F
from kdcore_losses import CrossEntropy, ForwardKL, MiniLLM, OnPolicyDistillation

from kdcore import PluginError, PreparedLoss, UsageError

pytestmark = pytest.mark.slow

ROWS = given.packed_rows()


def student(seed=1):
    return given.model(double=True, seed=seed)


class ByDocument(PreparedLoss):
    """-log of each answer's likelihood, squared: f(sum) as a coefficient of the tokens."""

    name = "by-document"
    needs_teacher = False

    def prepare(self, tokens):
        # f(s) = s^2 with s the sum of the answer's losses; f' = 2 s, the engine divides by count.
        return 2 * tokens.by_document(tokens.student_nll()) * tokens.count(self)

    def per_token_prepared(self, student, teacher, labels, prepared):
        return F.cross_entropy(student, labels, reduction="none") * prepared


class Shaped(PreparedLoss):
    name = "shaped"
    needs_teacher = False

    def __init__(self, made):
        self.made = made

    def prepare(self, tokens):
        return self.made(tokens)

    def per_token_prepared(self, student, teacher, labels, prepared):
        return F.cross_entropy(student, labels, reduction="none") * prepared.sum(-1)


class Preferred(PreparedLoss):
    """DPO without a reference: of the documents two by two, the first shall be likelier."""

    name = "preferred"
    needs_teacher = False
    beta = 0.3

    def prepare(self, tokens):
        likelihood = -tokens.by_document(tokens.student_nll())
        documents = tokens.document.unique(return_inverse=True)[1]
        sums = torch.zeros(int(documents.max()) + 1, dtype=likelihood.dtype)
        sums[documents] = likelihood
        sign, other = (1 - 2 * (documents % 2)).to(likelihood), documents ^ 1
        paired = other < len(sums)
        margin = self.beta * sign * (likelihood - sums[other.clamp(max=len(sums) - 1)])
        # The derivative of -log sigmoid(margin) by a token's loss; the engine divides by count.
        return self.beta * sign * torch.sigmoid(-margin) * paired * tokens.count(self)

    def per_token_prepared(self, student, teacher, labels, prepared):
        return F.cross_entropy(student, labels, reduction="none") * prepared


def preferred(losses, documents):
    """The same objective over whole sequences, for autograd."""
    sums = [-losses[documents == one].sum() for one in documents.unique()]
    pairs = zip(sums[::2], sums[1::2], strict=False)
    return sum(-F.logsigmoid(Preferred.beta * (first - second)) for first, second in pairs)


def squares(losses, documents):
    """The sum over answers of (sum of losses)^2."""
    return sum(losses[documents == one].sum() ** 2 for one in documents.unique())


def by_hand(model, objective):
    """The gradient of an objective of whole answers, by autograd over whole rows."""
    batch = engine.trainer(model, ROWS, [engine.term()]).collate(ROWS)
    logits = given.proved(model).logits(given.proved(model).states(batch))[batch.valid]
    losses = F.cross_entropy(
        logits[:, : batch.vocabulary], batch.labels[batch.valid], reduction="none"
    )
    total = objective(losses, batch.document.flatten()[batch.valid])
    return torch.autograd.grad(total, list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize(("loss", "objective"), [(ByDocument, squares), (Preferred, preferred)])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_a_function_of_whole_answers_has_the_gradient_of_autograd(loss, objective, micro_batch):
    model = student()
    expected = by_hand(model, objective)
    found = engine.step(model, ROWS, [engine.term(loss())], micro_batch=micro_batch)
    for ours, exact in zip(found.gradients.values(), expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scope", ["step", "micro_batch"])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_seen_and_count_are_those_of_the_term_after_the_selection(scope, micro_batch):
    found = []

    def made(tokens):
        found.append((tokens.seen(loss), tokens.count(loss)))
        return torch.ones(len(tokens.labels), 2)

    loss = Shaped(made)
    selection = engine.Keeps(lambda tokens: tokens.labels % 2 == 0)
    result = engine.step(
        student(),
        ROWS,
        [engine.term(loss), engine.term(CrossEntropy(), on="dropped")],
        selection=selection,
        scope=scope,
        micro_batch=micro_batch,
    )
    ((seen, count),) = found
    assert int(seen.sum()) == len(result.kept)
    assert float(count) == pytest.approx(len(result.kept))


def test_with_one_micro_batch_the_trunk_runs_once_and_else_once_more():
    model, runs = student(), []
    model.model.register_forward_hook(lambda *_: runs.append(1))
    for micro_batch, times in ((8, 1), (4, 4)):
        made = engine.trainer(model, ROWS, [engine.term(ByDocument())], micro_batch=micro_batch)
        runs.clear()
        made.step(1)
        assert len(runs) == times


def test_a_loss_that_asks_for_no_scores_runs_no_trunk_ahead():
    model, runs = student(), []
    model.model.register_forward_hook(lambda *_: runs.append(1))
    loss = Shaped(lambda tokens: torch.ones(len(tokens.labels), 1))
    made = engine.trainer(model, ROWS, [engine.term(loss)], micro_batch=4)
    runs.clear()
    made.step(1)
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda tokens: torch.ones(3), r"a tensor of shape \(3,\) from prepare"),
        (lambda tokens: [1.0], "list from prepare"),
        (lambda tokens: 1 / 0, "raised ZeroDivisionError in prepare"),
    ],
)
def test_a_loss_that_breaks_the_contract_is_named(made, said):
    with pytest.raises(PluginError, match=f"loss 'shaped' .*{said}"):
        engine.step(student(), ROWS, [engine.term(Shaped(made))])


def test_a_prepared_loss_is_no_score():
    selection = engine.Keeps(lambda tokens: tokens.score(ByDocument()) > 0)
    with pytest.raises(UsageError, match="'by-document' is prepared over a whole optimizer step"):
        engine.step(student(), ROWS, [engine.term()], selection=selection)


# Weights


def weighted(tokens):
    return (tokens.labels % 4).float() / 3


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_weights_give_a_weighted_mean(micro_batch):
    model = student()
    batch = engine.trainer(model, ROWS, [engine.term()]).collate(ROWS)
    proved = given.proved(model)
    logits = proved.logits(proved.states(batch))[batch.valid][:, : batch.vocabulary]
    labels = batch.labels[batch.valid]
    losses, weights = F.cross_entropy(logits, labels, reduction="none"), (labels % 4).double() / 3
    expected = (losses * weights).sum() / weights.sum()
    dropped = losses[weights == 0].mean()
    gradients = torch.autograd.grad(expected + dropped, list(model.parameters()))
    found = engine.step(
        model,
        ROWS,
        [engine.term(), engine.term(CrossEntropy(), on="dropped", label="ce.2")],
        selection=engine.Keeps(weighted),
        micro_batch=micro_batch,
    )
    assert found.terms["ce"] == pytest.approx(float(expected), rel=1e-6)
    assert found.terms["ce.2"] == pytest.approx(float(dropped), rel=1e-6)
    for ours, exact in zip(found.gradients.values(), gradients, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-7)


def test_weights_that_sum_to_little_are_divided_by_that():
    model = student()
    whole = engine.step(model, ROWS, [engine.term()])
    few = engine.step(
        model,
        ROWS,
        [engine.term()],
        selection=engine.Keeps(lambda tokens: torch.full((len(tokens.labels),), 1e-3)),
    )
    assert few.terms["ce"] == pytest.approx(whole.terms["ce"], rel=1e-5)


@pytest.mark.parametrize("micro_batch", [3, 8])
def test_weights_of_zero_give_zero(micro_batch):
    found = engine.step(
        student(),
        ROWS,
        [engine.term()],
        selection=engine.Keeps(lambda tokens: torch.zeros(len(tokens.labels))),
        micro_batch=micro_batch,
    )
    assert found.terms["ce"] == 0
    assert all(not each.any() for each in found.gradients.values())


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_bad_weights_are_named(bad):
    def keep(tokens):
        return torch.where(tokens.labels == tokens.labels[0], bad, 1.0)

    with pytest.raises(PluginError, match=f"selection 'watched' .*returned the weight {bad}"):
        engine.step(student(), ROWS, [engine.term()], selection=engine.Keeps(keep))


def test_kept_is_the_share_of_tokens_of_weight_above_zero():
    made = engine.trainer(student(), ROWS, [engine.term()], selection=engine.Keeps(weighted))
    made.step(1)
    labels = made.collate(ROWS).labels
    labels = labels[labels != -100]
    assert made.recorder.record(0.1).kept == pytest.approx(float((labels % 4 > 0).float().mean()))


# What ships


def likelihoods(model, batch):
    logits = given.proved(model).logits(given.proved(model).states(batch))[batch.valid]
    return F.log_softmax(logits[:, : batch.vocabulary], -1)


def reference(student_model, teacher_model, loss):
    """Value and gradient of a loss over whole rows, by autograd."""
    batch = engine.trainer(student_model, ROWS, [engine.term()]).collate(ROWS)
    log_q = likelihoods(student_model, batch)
    log_p = likelihoods(teacher_model, batch).detach()
    labels = batch.labels[batch.valid]
    value = loss(log_q, log_p, labels, batch)
    return value, torch.autograd.grad(value, list(student_model.parameters()))


def opd(log_q, log_p, labels, batch):
    picked_q, picked_p = (each.gather(1, labels[:, None]).squeeze(1) for each in (log_q, log_p))
    advantage = (picked_p - picked_q).detach()
    return -(advantage * (picked_q - picked_q.detach()).exp()).mean()


def minillm(log_q, log_p, labels, batch, normalised):
    picked_q, picked_p = (each.gather(1, labels[:, None]).squeeze(1) for each in (log_q, log_p))
    reward = (picked_p - picked_q).detach()
    here = (log_q.exp() * (log_q - log_p)).sum(1)
    time = batch.input_ids.shape[1]
    keys = list(
        zip(
            (batch.valid // time).tolist(),
            batch.document.flatten()[batch.valid].tolist(),
            strict=True,
        )
    )
    later = torch.zeros_like(reward)
    for n, key in enumerate(keys):
        behind = [m for m in range(n + 1, len(keys)) if keys[m] == key]
        total = reward[behind].sum()
        later[n] = total / max(1, len(behind)) if normalised else total
    return (here - (picked_q - picked_q.detach()).exp() * later).mean()


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize(
    ("loss", "textbook"),
    [
        (OnPolicyDistillation(), opd),
        (MiniLLM(), lambda *each: minillm(*each, normalised=True)),
        (MiniLLM(length_normalised=False), lambda *each: minillm(*each, normalised=False)),
    ],
    ids=["opd", "minillm", "minillm-sum"],
)
def test_it_is_the_textbook(loss, textbook, micro_batch):
    ours, theirs = student(1), student(2)
    value, gradients = reference(ours, theirs, textbook)
    found = engine.step(
        ours, ROWS, [engine.term(loss)], teacher=engine.Held(theirs), micro_batch=micro_batch
    )
    assert found.terms[loss.name] == pytest.approx(float(value), rel=1e-6)
    for mine, exact in zip(found.gradients.values(), gradients, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-6, atol=1e-8)


def test_a_prepared_term_combines_with_others():
    ours, theirs = student(1), student(2)
    teacher = engine.Held(theirs)
    both = engine.step(
        ours,
        ROWS,
        [engine.term(ForwardKL()), engine.term(OnPolicyDistillation(), weight=0.5)],
        teacher=teacher,
        micro_batch=3,
    )
    alone = [
        engine.step(ours, ROWS, [one], teacher=teacher, micro_batch=3)
        for one in (engine.term(ForwardKL()), engine.term(OnPolicyDistillation(), weight=0.5))
    ]
    for name, gradient in both.gradients.items():
        summed = alone[0].gradients[name] + alone[1].gradients[name]
        torch.testing.assert_close(gradient, summed, rtol=1e-9, atol=1e-12)
