"""A teacher with another tokenizer says what it knows at the tokens that both have."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from kdcore_aligned import Aligned
from kdcore_hf import HfTeacher

from kdcore import RunError, SparseLogits
from kdcore.objective.teachers import read, read_outputs

STUDENT = tiny.byte_tokenizer(vocabulary=290)
OTHERS = ["Once upon a time there was a wolf in a story", "on und so weiter und so fort"]
TEXTS = ["Once there was a fox.", "東京 café — a story", "so it goes on and on"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, tokenizer in {
        "same": STUDENT,
        "bytes": tiny.byte_tokenizer(OTHERS, 330, eos="</s>"),
        "pieces": tiny.llama_tokenizer(),
    }.items():
        made[name] = tmp_path_factory.mktemp(name)
        tiny.save(made[name], tokenizer=tokenizer)
    return made


def loaded(folder, temperatures=(1.0,)):
    teacher = Aligned(teacher=HfTeacher(model=str(folder)))
    losses = [SimpleNamespace(loss=SimpleNamespace(temperatures=lambda: temperatures))]
    run = SimpleNamespace(
        tokenizer=STUDENT,
        vocabulary=len(STUDENT),
        device=tiny.CPU,
        data=SimpleNamespace(streams=True),
        recipe=SimpleNamespace(terms=losses),
    )
    teacher.teacher.load(run)
    teacher.load(run)
    return teacher


def batch_of(texts):
    some = [np.array([*STUDENT(text)["input_ids"], 0]) for text in texts]
    layout = [[(n, 0, len(each)) for n, each in enumerate(some[:2])], [(2, 0, len(some[2]))]]
    return tiny.batch(some, layout, vocabulary=len(STUDENT))


BATCH = batch_of(TEXTS)


def test_the_same_tokenizer_gives_the_plain_teacher(folders):
    teacher = loaded(folders["same"])
    assert teacher.ids_known() is None and teacher.known(BATCH).all()
    plain = read(teacher.teacher, BATCH)(BATCH.valid)
    torch.testing.assert_close(read(teacher, BATCH)(BATCH.valid), plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_it_says_what_the_teacher_says_of_the_same_text(folders, kind):
    """By hand: the teacher alone reads the text before a token, and is asked for that token."""
    teacher = loaded(folders[kind], [1.0, 2.0])
    theirs, model = teacher.teacher.tokenizer(), teacher.teacher._model.model
    outputs = read_outputs(teacher, BATCH)(BATCH.valid)
    assert isinstance(outputs, SparseLogits) and outputs.ids.stride(0) == 0
    known = teacher.known(BATCH)
    assert 0.2 < known.float().mean() < 1
    ids = BATCH.input_ids.flatten()
    made, _, places = teacher._of(BATCH)
    for n in known.nonzero().flatten().tolist():
        position = int(BATCH.valid[n])
        row = made.batch.input_ids.flatten()
        place = int(places[position])
        start = place - int(made.batch.position_ids.flatten()[place])
        before = row[start : place + 1]
        ours = ids[position - int(BATCH.position_ids.flatten()[position]) : position + 1]
        read_by = teacher._retokenizer
        theirs_read = b"".join(read_by.other_bytes[each] for each in before.tolist())
        assert theirs_read.removeprefix(b" ") == b"".join(
            read_by.our_bytes[each] for each in ours.tolist()
        )
        logits = model(before[None]).logits[0, -1, : len(theirs)].float()
        logs = logits.log_softmax(-1)
        by_id = dict(zip(*(each.tolist() for each in teacher._ids), strict=True))
        some = [int(each) for each in outputs.ids[n]]
        wanted = logs[[by_id[each] for each in some]]
        torch.testing.assert_close(outputs.log_probabilities[n, :-1], wanted, atol=1e-4, rtol=1e-4)
        others = torch.tensor([m for m in range(len(theirs)) if m not in by_id.values()])
        torch.testing.assert_close(
            outputs.log_probabilities[n, -1], logs[others].logsumexp(0), atol=1e-4, rtol=1e-4
        )
        tempered = 2 * (logs[others] / 2).logsumexp(0)
        torch.testing.assert_close(outputs.tempered[2.0][n], tempered, atol=1e-4, rtol=1e-4)


def test_the_label_of_a_known_token_is_an_id_that_both_have(folders):
    teacher = loaded(folders["pieces"])
    labels = BATCH.labels[BATCH.valid][teacher.known(BATCH)]
    assert set(labels.tolist()) <= set(teacher._ids[0].tolist())
    assert STUDENT.eos_token_id in labels


def test_a_teacher_without_a_tokenizer_is_refused():
    from kdcore.testing import TableTeacher

    teacher = Aligned(teacher=TableTeacher())
    run = SimpleNamespace(tokenizer=STUDENT)
    with pytest.raises(RunError, match="no tokenizer of its own"):
        teacher.load(run)


@pytest.mark.slow
def test_teachers_within_that_cannot_serve_are_refused():
    from kdcore_cached.teacher import CachedTeacher
    from kdcore_losses import ForwardKL, UniversalLogitDistillation

    stored = CachedTeacher(teacher=HfTeacher(model="x"), kind="topk", k=8)
    stage = SimpleNamespace(terms=[SimpleNamespace(loss=ForwardKL())])
    (said,) = Aligned(teacher=stored).faults(stage)
    assert said.endswith("put 'cached' around 'aligned'")
    stage.terms.append(SimpleNamespace(loss=UniversalLogitDistillation()))
    said = [*Aligned(teacher=stored).faults(stage)]
    assert "the loss 'uld' compares all ids" in said[0]
    assert not [*Aligned(teacher=HfTeacher(model="x")).faults(stage)]


@pytest.mark.slow
def test_a_recipe_with_it_trains(folders, tmp_path, monkeypatch):
    import kdcore

    monkeypatch.chdir(tmp_path)
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = {
        "name": "crossed",
        "student": {"config": config},
        "tokenizer": {"use": "bpe", "vocab_size": 300},
        "data": {"use": "stories", "block": 32, "stories": 20},
        "teacher": {"use": "aligned", "teacher": {"use": "hf", "model": str(folders["bytes"])}},
        "loss": [{"use": "ce", "weight": 0.5}, {"use": "kl", "weight": 0.5}],
        "eval": [{"use": "agreement"}],
        "train": {"lr": 1e-2, "steps": 3, "batch": 2, "log_every": 1},
    }
    result = kdcore.run(recipe)
    shares = [line["teacher/aligned"] for line in result.metrics if line["loss"] is not None]
    assert len(shares) == 3 and all(0.2 < share < 1 for share in shares)
    assert 0 < result.scores["agreement"] < 1
