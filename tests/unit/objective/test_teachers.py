"""Whatever a teacher does, what is read of it is checked, cut, and without gradient."""

import pytest
import torch
import torch.nn.functional as F

from kdcore import PluginError, Teacher, UsageError, read, read_nll
from kdcore.models import head
from kdcore.models.head import nll_from_logits, nll_of
from kdcore.testing.fakes import make_batch

BATCH = make_batch([[3, 1, 4, 1, 5], [9, 2, 6]], vocabulary=10)
TABLE = torch.randn(10, 12, generator=torch.Generator().manual_seed(0))
IDS = BATCH.input_ids.flatten()


class Made(Teacher):
    """Gives what it is told to give, by position."""

    name = "made"

    def __init__(self, give=lambda positions: TABLE[IDS[positions]], nll=None):
        self.give, self.given_nll = give, nll

    def read(self, batch):
        return self.give

    def nll(self, batch):
        return self.given_nll or super().nll(batch)


def test_logits_are_cut_to_the_shared_ids_in_float32():
    logits = read(Made(lambda positions: TABLE[IDS[positions]].bfloat16()), BATCH)(BATCH.valid)
    assert logits.dtype == torch.float32
    assert logits.equal(TABLE[IDS[BATCH.valid], :10].bfloat16().float())


def test_there_is_no_gradient():
    weight = torch.nn.Parameter(TABLE)
    modes = []

    def give(positions):
        modes.append(torch.is_grad_enabled())
        return weight[IDS[positions]]

    assert not read(Made(give), BATCH)(BATCH.valid).requires_grad
    assert modes == [False]
    held = weight * 1
    assert not read(Made(lambda positions: held[: len(positions)]), BATCH)(
        BATCH.valid
    ).requires_grad


def test_a_model_left_in_training_mode_is_put_into_evaluation_mode():
    teacher = Made()
    teacher.dropout = torch.nn.Dropout(0.5)
    teacher.give = lambda positions: teacher.dropout(TABLE[IDS[positions]])
    once, again = (read(teacher, BATCH)(BATCH.valid) for _ in range(2))
    assert once.equal(again)
    teacher.dropout.train()
    read_nll(teacher, BATCH)
    assert not teacher.dropout.training


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (None, "gave NoneType from read, expected a function of flat positions"),
        (lambda positions: [1.0], "gave list from read, expected floating-point numbers"),
        (
            lambda positions: TABLE[IDS],
            r"float32 of shape \[10, 12\] from read, .* \[6, 10 or more\]",
        ),
        (lambda positions: TABLE[IDS[positions], :9], r"of shape \[6, 9\]"),
        (lambda positions: TABLE[IDS[positions]][None], r"of shape \[1, 6, 12\]"),
        (lambda positions: TABLE[IDS[positions]].long(), r"gave torch\.int64"),
        (
            lambda positions: TABLE[IDS[positions]].to("meta"),
            r"on meta from read, expected one on cpu",
        ),
    ],
)
def test_errors_name_teacher_and_component(give, said):
    with pytest.raises(PluginError, match=rf"teacher 'made' \(test_teachers\.Made\) .*{said}"):
        read(Made(give) if give else _readless(), BATCH)(BATCH.valid)


def _readless():
    made = Made()
    made.give = None
    return made


def test_invalid_likelihoods_are_reported():
    with pytest.raises(
        PluginError, match=r"from nll, expected floating-point numbers of shape \[6\]"
    ):
        read_nll(Made(nll=lambda positions, labels: TABLE[0]), BATCH)(BATCH.valid, BATCH.valid)
    with pytest.raises(PluginError, match="gave int from nll, expected a function"):
        read_nll(Made(nll=3), BATCH)


def test_a_teacher_of_losses_only_cannot_be_read():
    class LossesOnly(Made):
        def gives_logits(self):
            return False

    with pytest.raises(UsageError, match="teacher 'made' gives losses but no logits"):
        read(LossesOnly(), BATCH)
    nll = read_nll(LossesOnly(nll=lambda positions, labels: positions.half()), BATCH)
    assert nll(BATCH.valid, BATCH.labels[BATCH.valid]).dtype == torch.float32


def test_likelihoods_come_from_logits_in_small_pieces(monkeypatch):
    """Twice a chunk on a CPU, where nothing but the logits is held."""
    monkeypatch.setattr(head, "chunk_size", lambda vocabulary, device: 1)
    asked = []

    def give(positions):
        asked.append(len(positions))
        return TABLE[IDS[positions]]

    labels = BATCH.labels[BATCH.valid]
    found = read_nll(Made(give), BATCH)(BATCH.valid, labels)
    expected = F.cross_entropy(TABLE[IDS[BATCH.valid], :10], labels, reduction="none")
    torch.testing.assert_close(found, expected)
    assert asked == [2, 2, 2]


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_few_rows_at_a_time_give_the_same_bits(monkeypatch, rows):
    logits, labels = torch.randn(7, 11), torch.randint(11, (7,))
    monkeypatch.setattr(head, "_IN_CACHE", 11 * rows)
    assert torch.equal(nll_of(logits, labels), F.cross_entropy(logits, labels, reduction="none"))


def test_no_positions_give_no_values():
    none = BATCH.valid[:0]
    assert read(Made(), BATCH)(none).shape == (0, 10)
    assert nll_from_logits(read(Made(), BATCH), BATCH)(none, none).shape == (0,)
