from types import SimpleNamespace

import torch
from kdcore_alpha import Bigram, Counting, Curve, Hellinger, Teachable


def test_counting_shares_no_sentence_between_the_splits():
    data = Counting(documents=50)
    train, validation = (list(data.texts(split)) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (45, 5)
    assert train[0] == "one, two and then three."


def test_bigram_counts_what_follows():
    rows = [{"input_ids": [0, 1, 0, 1]}, {"input_ids": [0, 2]}]
    run = SimpleNamespace(vocabulary=3, device="cpu", rows=lambda split: rows)
    teacher = Bigram(pseudocount=1.0)
    teacher.load(run)
    batch = SimpleNamespace(input_ids=torch.tensor([[2, 0]]))
    probabilities = teacher.read(batch)(torch.tensor([1])).softmax(-1)
    torch.testing.assert_close(probabilities, torch.tensor([[1, 3, 2]]) / 6)


def test_hellinger_is_that_of_the_textbook():
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    roots = (student.softmax(-1).sqrt() - teacher.softmax(-1).sqrt()) ** 2
    found = Hellinger().per_token(student, teacher, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(found, roots.sum(-1) / 2)


def test_teachable_keeps_what_the_teacher_predicts_best():
    def top(scores, share):
        return scores >= scores.topk(int(share * len(scores))).values.min()

    tokens = SimpleNamespace(nll=lambda: torch.tensor([3.0, 0.1, 0.2, 2.0]), top=top)
    assert Teachable(share=0.5).keep(tokens).tolist() == [False, True, True, False]


def test_curve_writes_a_line_for_each_record(tmp_path):
    run = SimpleNamespace(main=True, step=0, folder=tmp_path)
    curve = Curve(separator="tab")
    curve.kdcore_run_start(run)
    curve.kdcore_log(run, SimpleNamespace(step=5, loss=2.5))
    assert (tmp_path / "curve.csv").read_text().split() == ["step", "loss", "5", "2.5"]
