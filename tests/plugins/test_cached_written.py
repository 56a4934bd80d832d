"""The teacher `cached` on rows written while training: live, in its own form, stored nowhere."""

import tiny
import torch
from caching import ROWS, cached, live, loads, run_in, some_documents, values
from kdcore_losses import ForwardKL

from kdcore import read
from kdcore.objective.teachers import read_outputs
from kdcore.rollout.layout import WRITTEN


def written():
    return tiny.batch(some_documents(seed=5), ROWS[:3], split=WRITTEN)


def test_topk_tells_what_the_wrapped_teacher_says_in_its_own_form(tmp_path):
    model = tmp_path / "model"
    tiny.save(model, "llama")
    run, batch = run_in(tmp_path, ForwardKL(temperature=2.0)), written()
    teacher = cached(run, model, kind="topk", k=5)
    ids, logs, tempered = read_outputs(teacher, batch)(batch.valid)
    whole = read(live(run, model), batch)(batch.valid).log_softmax(-1)
    assert torch.equal(ids, whole.topk(5).indices)
    assert torch.equal(logs[:, :5], whole.gather(1, ids).half().float())
    assert set(tempered) == {2.0}, "also the others' mass at the losses' temperatures"
    some = read_outputs(teacher, batch)(batch.valid[3:5])
    assert torch.equal(some.ids, ids[3:5])
    assert loads(teacher) == 1 and not list((tmp_path / "caches").rglob("*")), "nothing is stored"


def test_losses_are_the_wrapped_teachers(tmp_path):
    model = tmp_path / "model"
    tiny.save(model, "llama")
    run, batch = run_in(tmp_path), written()
    for context in ("row", "document"):
        teacher = cached(run, model, context=context)
        torch.testing.assert_close(values(teacher, batch), values(live(run, model), batch))
    assert not list((tmp_path / "caches").rglob("*"))
