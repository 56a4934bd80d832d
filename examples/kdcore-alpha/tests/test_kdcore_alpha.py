"""What the components compute, and that they keep kdcore's contracts."""

from types import SimpleNamespace

import torch
from kdcore_alpha import Bigram, Counting, Curve, Hellinger, Teachable

from kdcore.testing import check_loss, check_selection, check_teacher
from kdcore.testing.fakes import make_batch, make_tokens


def test_counting_gives_the_splits_different_sentences():
    data = Counting(documents=50)
    train, validation = (list(data.texts(split)) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (45, 5)
    assert not {*train} & {*validation}
    assert train[0] == "1, 2, 3 and then 4."


def counted(*rows: list[int], vocabulary: int = 64) -> Bigram:
    """A teacher that has counted these rows."""
    run = SimpleNamespace(
        vocabulary=vocabulary,
        device="cpu",
        rows=lambda split: [{"input_ids": row} for row in rows],
    )
    teacher = Bigram(pseudocount=1.0)
    teacher.load(run)
    return teacher


def test_bigram_counts_what_follows():
    teacher = counted([0, 1, 0, 1], [0, 2], vocabulary=3)
    batch = make_batch([[2, 0, 1]], vocabulary=3)
    probabilities = teacher.read(batch)(torch.tensor([1])).softmax(-1)
    torch.testing.assert_close(probabilities, torch.tensor([[1, 3, 2]]) / 6)


def test_bigram_keeps_the_contract_of_teachers():
    check_teacher(counted([1, 2, 3, 4]), make_batch([[1, 2, 3], [4, 3]]))


def test_hellinger_is_that_of_the_textbook():
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    roots = (student.softmax(-1).sqrt() - teacher.softmax(-1).sqrt()) ** 2
    found = Hellinger().per_token(student, teacher, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(found, roots.sum(-1) / 2)


def test_hellinger_keeps_the_contract_of_losses():
    check_loss(Hellinger())


def test_teachable_keeps_what_the_teacher_predicts_best():
    batch = make_batch([[1, 2, 3, 4, 5]])
    tokens = make_tokens(batch, counted([1, 2], [1, 2], [3, 4]))
    assert Teachable(share=0.5).keep(tokens).tolist() == [True, False, True, False]


def test_teachable_keeps_the_contract_of_selections():
    check_selection(Teachable())


def test_curve_writes_a_line_for_each_record(tmp_path):
    run = SimpleNamespace(main=True, step=0, folder=tmp_path)
    curve = Curve(separator="tab")
    curve.kdcore_run_start(run)
    curve.kdcore_log(run, SimpleNamespace(step=5, loss=2.5))
    assert (tmp_path / "curve.csv").read_text().split() == ["step", "loss", "5", "2.5"]
