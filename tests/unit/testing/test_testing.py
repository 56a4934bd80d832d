"""The checks pass what keeps the contract, and say what is wrong with what does not."""

import pytest
import torch
import torch.nn.functional as F
from kdcore_losses import DistiLLM2, MiniLLM, OnPolicyDistillation

from kdcore import Loss, PluginError, PreparedLoss, Selection, Teacher, component
from kdcore.testing import check_loss, check_selection, check_teacher
from kdcore.testing.fakes import TableTeacher, make_batch, make_tokens, tiny_llama, tiny_tokenizer


@component
class Good(Loss):
    name = "good"
    temperature: float = 1.0

    def per_token(self, student, teacher, labels):
        student, teacher = (F.log_softmax(x / self.temperature, -1) for x in (student, teacher))
        return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)


class OwnWeight(Good):
    weight = torch.ones((), requires_grad=True)

    def per_token(self, student, teacher, labels):
        return super().per_token(student, teacher, labels) * self.weight


class Detached(Good):
    def per_token(self, student, teacher, labels):
        return super().per_token(student.detach(), teacher, labels)


class Writing(Good):
    def per_token(self, student, teacher, labels):
        teacher.div_(2)
        return super().per_token(student, teacher, labels)


class OverTheChunk(Good):
    def per_token(self, student, teacher, labels):
        return super().per_token(student, teacher, labels) / len(labels)


class Shifted(Good):
    def per_token(self, student, teacher, labels):
        return super().per_token(student, teacher, labels) + 1


class Negative(Good):
    def per_token(self, student, teacher, labels):
        return -super().per_token(student, teacher, labels)


class Underflowing(Good):
    def per_token(self, student, teacher, labels):
        p, q = teacher.softmax(-1), student.softmax(-1)
        return (q * (q / p).log()).sum(-1)


class Cold(Good):
    def per_token(self, student, teacher, labels):
        values = super().per_token(student, teacher, labels)
        return values * torch.nan if self.temperature < 0.1 else values


class Reduced(Good):
    def per_token(self, student, teacher, labels):
        return super().per_token(student, teacher, labels).mean()


class Rounded(Good):
    def per_token(self, student, teacher, labels):
        return super().per_token(student, teacher, labels).bfloat16()


class Nothing(Good):
    def per_token(self, student, teacher, labels):
        return None


def test_a_good_loss_passes():
    check_loss(Good())
    check_loss(Good(temperature=2.0))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (OwnWeight, "good: has a gradient to something else"),
        (Detached, "good: has no gradient to the student"),
        (Writing, "good: writes into its inputs"),
        (OverTheChunk, "good: gives a token other values when the chunk is smaller"),
        (Shifted, "good: should be 0 where student equals teacher, is 1"),
        (Negative, "good: is negative"),
        (Underflowing, "good: is not finite for logits of .-200"),
        (Cold, r"good: is not finite for logits of .-3.0 at temperature 0\.05"),
        (Reduced, r"good: returned torch\.float32 of shape \(\)"),
        (Rounded, r"good: returned torch\.bfloat16"),
        (Nothing, "good: returned NoneType"),
    ],
)
def test_a_bad_loss_is_reported_why(made, said):
    with pytest.raises(AssertionError, match=said):
        check_loss(made())


def test_what_a_loss_declares_is_allowed():
    check_loss(Negative(), never_negative=False)
    check_loss(Shifted(), zero_at_equality=False)


class Likelihood(Loss):
    name = "likelihood"
    needs_teacher = False

    def per_token(self, student, teacher, labels):
        assert teacher is None
        return F.cross_entropy(student, labels, reduction="none")


def test_a_loss_without_a_teacher_gets_none():
    check_loss(Likelihood())


BATCH = make_batch([[3, 1, 4, 1, 5], [9, 2, 6]])


class Dropping(TableTeacher):
    def read(self, batch):
        at = super().read(batch)
        return lambda positions: F.dropout(at(positions), 0.5)


class Broken(TableTeacher):
    def table(self):
        return super().table() * torch.nan


class Sequential(TableTeacher):
    """Takes positions to come in order."""

    def read(self, batch):
        at = super().read(batch)
        return lambda positions: at(positions.sort().values)


class OtherLikelihood(TableTeacher):
    def nll(self, batch):
        return lambda positions, labels: torch.ones(len(positions))


class Impossible(OtherLikelihood):
    def nll(self, batch):
        return lambda positions, labels: -torch.ones(len(positions))


class WritingTeacher(TableTeacher):
    def read(self, batch):
        batch.input_ids.add_(1).remainder_(self.vocabulary)
        return super().read(batch)


def test_a_good_teacher_passes():
    check_teacher(TableTeacher(), BATCH)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Dropping, "table: reads a batch otherwise the second time"),
        (Broken, "table: gives likelihoods that are not finite"),
        (Sequential, "table: mixes up positions"),
        (OtherLikelihood, "table: gives other likelihoods by `nll`"),
        (Impossible, "table: gives likelihoods above 1"),
    ],
)
def test_a_bad_teacher_is_reported_why(made, said):
    with pytest.raises(AssertionError, match=said):
        check_teacher(made(), make_batch([[3, 1, 4, 1, 5], [9, 2, 6]]))


def test_a_teacher_that_writes_into_the_batch_is_refused():
    with pytest.raises(PluginError, match="wrote into the tensors that read was given"):
        check_teacher(WritingTeacher(), make_batch([[3, 1, 4, 1, 5], [9, 2, 6]]))


class LossesOnly(Teacher):
    name = "losses-only"

    def gives_logits(self):
        return False

    def nll(self, batch):
        return lambda positions, labels: positions.float()


def test_a_teacher_may_know_losses_only():
    check_teacher(LossesOnly(), BATCH)


class All(Selection):
    name = "all"

    def keep(self, tokens):
        return torch.ones(len(tokens.labels), dtype=torch.bool)


class Whims(Selection):
    name = "whims"

    def keep(self, tokens):
        return torch.rand(len(tokens.labels)) < 0.5


class Scores(Selection):
    name = "scores"

    def keep(self, tokens):
        return tokens.labels


class Losing(Selection):
    name = "losing"

    def keep(self, tokens):
        return -tokens.student_nll()


class Rows(Selection):
    name = "rows"

    def keep(self, tokens):
        return torch.ones(3, dtype=torch.bool)


class Unsaid(Selection):
    name = "unsaid"

    def keep(self, tokens):
        return tokens.nll() > 1


class Said(Unsaid):
    def needs_teacher(self):
        return True


def test_a_good_selection_passes():
    check_selection(All())
    check_selection(Said())
    check_selection(All(), make_tokens(BATCH))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Whims, "whims: keeps other tokens when asked again"),
        (Scores, r"scores: returned torch\.int64, neither torch\.bool nor floats: weights"),
        (Losing, "losing: returned weights that are negative or not finite"),
        (Rows, r"rows: returned the shape \(3,\), not \(24,\)"),
        (Unsaid, "unsaid: .*; say so in `needs_teacher`"),
    ],
)
def test_a_bad_selection_is_reported_why(made, said):
    with pytest.raises(AssertionError, match=said):
        check_selection(made())


def test_a_batch_has_shifted_labels_and_masked_padding():
    batch = make_batch([[5, 6, 7], [8, 9]], vocabulary=10)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.labels.view(2, 3).tolist() == [[6, 7, -100], [9, -100, -100]]
    assert batch.valid.tolist() == [0, 1, 3]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.document.tolist() == [[0, 0, 0], [1, 1, -1]]
    assert batch.offset.tolist() == [[0, 1, 2], [0, 1, -1]]


def test_a_tiny_llama_is_the_same_each_time_and_leaves_the_seed_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, other = tiny_llama(), tiny_llama()
    assert one.lm_head.weight.equal(other.lm_head.weight)
    assert not one.training
    assert torch.get_rng_state().equal(before)


def test_the_tiny_tokenizer_gives_every_text_back():
    tokenizer = tiny_tokenizer()
    text = "Once, a café… 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())
    assert len(tokenizer) == 257
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0


class Prepared(PreparedLoss):
    """By how likely its answer was when the step began."""

    name = "prepared"

    def prepare(self, tokens):
        return tokens.by_document(tokens.student_nll()).float() / tokens.count(self)

    def per_token_prepared(self, student, teacher, labels, prepared):
        return prepared * F.cross_entropy(student, labels, reduction="none")


class PreparesAnew(Prepared):
    steps = 0

    def prepare(self, tokens):
        self.steps += 1
        return super().prepare(tokens) * self.steps


class PreparesNothing(Prepared):
    def prepare(self, tokens):
        return torch.full_like(super().prepare(tokens), float("nan"))


class PreparesTooFew(Prepared):
    def prepare(self, tokens):
        return super().prepare(tokens)[1:]


class OverThePreparedChunk(Prepared):
    def per_token_prepared(self, student, teacher, labels, prepared):
        values = super().per_token_prepared(student, teacher, labels, prepared)
        return values / prepared.sum()


def test_a_loss_that_prepares_is_checked_with_what_it_prepares():
    for loss in (Prepared(), OnPolicyDistillation(), MiniLLM(), DistiLLM2()):
        check_loss(loss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (PreparesAnew(), "prepares something else the second time"),
        (PreparesNothing(), "prepared torch.float32 that is not floats, or is not finite"),
        (PreparesTooFew(), "from prepare, expected one row for each of 24 tokens"),
        (OverThePreparedChunk(), "gives a token other values when the chunk is smaller"),
    ],
)
def test_what_is_wrong_with_a_loss_that_prepares_is_said(loss, message):
    with pytest.raises(AssertionError, match=message):
        check_loss(loss)
