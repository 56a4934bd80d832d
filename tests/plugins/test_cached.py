"""The teacher `cached`: losses of rows, what a store is bound to, damage, processes, loading."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from caching import Spy, batches, cached, live, loads, run_in, some_documents, values
from kdcore_cached import CachedTeacher

from kdcore import RunError, Teacher, UsageError, component, read_nll

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder, "llama")
    return folder


def test_equal_to_the_live_teacher_everywhere(tmp_path, model):
    run = run_in(tmp_path)
    alive = live(run, model)
    first, second = cached(run, model), cached(run, model)
    for teacher in (first, second):
        for batch in batches():
            assert torch.equal(values(teacher, batch), values(alive, batch))
    assert (loads(first), loads(second)) == (1, 0)
    assert first.teacher.batches == 3


def test_any_part_of_the_batch_in_any_order(tmp_path, model):
    run = run_in(tmp_path)
    teacher = cached(run, model)
    (batch,) = batches((5,))
    whole = values(teacher, batch)
    order = torch.randperm(len(whole))[:7]
    positions = batch.valid[order]
    part = read_nll(teacher, batch)(positions, batch.labels[positions])
    assert torch.equal(part, whole[order])


def test_other_batches_of_the_same_rows_need_no_teacher(tmp_path, model):
    run = run_in(tmp_path)
    teacher = cached(run, model)
    together = torch.cat([values(teacher, batch) for batch in batches((5,))])
    again = cached(run, model)
    apart = torch.cat([values(again, batch) for batch in batches((1, 1, 1, 1, 1))])
    assert torch.equal(together, apart) and loads(again) == 0


def test_the_teacher_is_loaded_when_something_is_missing(tmp_path, model):
    run = run_in(tmp_path)
    teacher = cached(run, model)
    assert loads(teacher) == 0 and not run.said
    first, second = batches((2, 3))
    values(teacher, first)
    values(teacher, first)
    assert (loads(teacher), teacher.teacher.batches) == (1, 1)
    assert len(run.said) == 1 and "is not complete: loading 'hf'" in run.said[0]
    resumed = cached(run, model)
    values(resumed, first)
    assert loads(resumed) == 0
    values(resumed, second)
    assert (loads(resumed), resumed.teacher.batches) == (1, 1)


def test_prompts_are_not_scored(tmp_path, model):
    run = run_in(tmp_path)
    teacher = cached(run, model)
    (batch,) = batches((5,))
    fewer = batch.valid[::2]
    labels = torch.full_like(batch.labels, -100)
    labels[fewer] = batch.labels[fewer]
    values(teacher, replace(batch, labels=labels, valid=fewer))
    stored = np.fromfile(next(run.caches.glob("*/nll.f32")), np.float32)
    assert (~np.isnan(stored)).sum() == len(fewer)


def test_a_batch_that_trains_nothing(tmp_path, model):
    teacher = cached(run_in(tmp_path), model)
    batch = tiny.batch(some_documents(), [[(0, 0, 1)]])
    assert values(teacher, batch).shape == (0,) and loads(teacher) == 0


def test_each_split_has_its_own(tmp_path, model):
    run = run_in(tmp_path)
    teacher = cached(run, model)
    for batch in [*batches((5,)), *batches((5,), "validation", seed=1)]:
        values(teacher, batch)
    assert {path.name.rsplit("-", 1)[0] for path in run.caches.iterdir()} == {
        "hf-train",
        "hf-validation",
    }


def changed_data(run):
    run.data = replace(run.data, block=16)


def changed_rows(run):
    run.data = replace(run.data, rows="chunk")


def changed_tokenizer(run):
    run.tokenizer = tiny.byte_tokenizer(vocabulary=290)


@pytest.mark.parametrize("change", [changed_data, changed_rows, changed_tokenizer])
def test_what_the_store_is_bound_to(tmp_path, model, change):
    run = run_in(tmp_path)
    (batch,) = batches((5,))
    values(cached(run, model), batch)
    change(run)
    teacher = cached(run, model)
    values(teacher, batch)
    assert loads(teacher) == 1 and len(list(run.caches.iterdir())) == 2


def test_bound_to_teacher_text_and_vocabulary(tmp_path, model):
    run = run_in(tmp_path)
    (batch,), (other_text,) = batches((5,)), batches((5,), seed=1)
    narrow = replace(batch, vocabulary=60, labels=batch.labels.clamp(max=59))
    tiny.save(tmp_path / "other", seed=1)
    values(cached(run, model), batch)
    for options, asked in (
        ({"model": model}, other_text),
        ({"model": model}, narrow),
        ({"model": tmp_path / "other"}, batch),
        ({"model": model, "dtype": "bf16"}, batch),
    ):
        teacher = cached(run, **options)
        values(teacher, asked)
        assert loads(teacher) == 1
    meta = json.loads(next(run.caches.glob("*/meta.json")).read_text())
    assert meta["layout"] == {"block": 8, "rows": "pack", "cut": "right", "eos": True}
    assert meta["kind"] == "nll" and meta["context"] == "row"
    # Another key would give every store that is there another name.
    keys = "context data device kind layout split teacher tokenizer vocabulary"
    assert sorted(meta) == keys.split()


def shortened(store):
    file = store / "nll.f32"
    file.write_bytes(file.read_bytes()[:-3])


def without_meta(store):
    (store / "meta.json").unlink()


def with_torn_meta(store):
    (store / "meta.json").write_text((store / "meta.json").read_text()[:20])


def without_values(store):
    (store / "nll.f32").unlink()


@pytest.mark.parametrize("damage", [shortened, without_meta, with_torn_meta, without_values])
def test_damage_is_found_and_mended(tmp_path, model, damage):
    run = run_in(tmp_path)
    (batch,) = batches((5,))
    before = values(cached(run, model), batch)
    (store,) = run.caches.iterdir()
    damage(store)
    run.said.clear()
    teacher = cached(run, model)
    assert torch.equal(values(teacher, batch), before)
    assert loads(teacher) == 1
    assert run.said[0] == f"{store} is damaged: it is made anew"
    assert [path.name for path in run.caches.iterdir()] == [store.name]


def test_a_store_that_another_process_made_first(tmp_path, model, monkeypatch):
    run = run_in(tmp_path)
    (batch,) = batches((5,))
    first = cached(run, model)
    expected = values(first, batch)
    exists = type(run.caches).exists
    second = cached(run, model)
    # Seen as absent once, so that both make it.
    answers = iter([False, False])
    monkeypatch.setattr(type(run.caches), "exists", lambda path: next(answers, exists(path)))
    assert torch.equal(values(second, batch), expected)
    assert loads(second) == 0 and len(list(run.caches.iterdir())) == 1


def test_two_processes_write_concurrently(tmp_path, model):
    run = run_in(tmp_path)
    first, second = cached(run, model), cached(run, model)
    mine, theirs = batches((2, 3))
    values(first, mine)
    values(second, theirs)
    third = cached(run, model)
    for batch in (mine, theirs):
        values(third, batch)
    assert loads(third) == 0


def test_nested_teachers_are_loaded_by_it(tmp_path, model):
    @component
    class Twice(Teacher):
        name = "twice"
        members: list[Teacher]

        def load(self, run):
            self.is_loaded = True

        def nll(self, batch):
            assert self.is_loaded
            return self.members[0].nll(batch)

        def tokenizer(self):
            return None

    assert CachedTeacher.loads_members
    run = run_in(tmp_path)
    teacher = CachedTeacher(teacher=Twice(members=[Spy(model=str(model))]))
    teacher.load(run)
    (batch,) = batches((5,))
    values(teacher, batch)
    assert teacher.teacher.members[0].loads == 1


def test_streamed_data_is_refused(tmp_path, model):
    teacher = cached(run_in(tmp_path), model)
    (batch,) = batches((5,))
    streamed = replace(batch, split=replace(batch.split, lengths=np.empty(0, np.int64)))
    with pytest.raises(RunError, match="streamed"):
        values(teacher, streamed)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"k": 3}, 'k is an option of kind = "topk", not of "nll"'),
        ({"kind": "topk", "draws": 3}, 'draws is an option of kind = "sampled", not of "topk"'),
        ({"kind": "topk", "seed": 3}, 'seed is an option of kind = "sampled"'),
        ({"window": 64}, 'window requires context = "document"'),
    ],
)
def test_options_of_other_kinds_are_refused(options, said, model):
    with pytest.raises(UsageError, match=said):
        CachedTeacher(teacher=Spy(model=str(model)), **options)


def test_a_disk_that_is_full_is_said(tmp_path, model, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    (batch,) = batches((5,))
    with pytest.raises(RunError, match=r"hf-train-\w+ \(240 bytes\): .*No space left on device"):
        values(cached(run_in(tmp_path), model), batch)
    assert not list((tmp_path / "caches").iterdir())


def test_it_gives_no_logits_and_the_wrapped_tokenizer(tmp_path, model):
    teacher = cached(run_in(tmp_path), model)
    assert not teacher.gives_logits()
    assert teacher.tokenizer() is teacher.teacher.tokenizer()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(tmp_path, model):
    run = run_in(tmp_path)
    run.device = torch.device("cuda")
    alive = live(run, model)
    first, second = cached(run, model), cached(run, model)
    for teacher in (first, second):
        for batch in batches(device=run.device):
            assert torch.equal(values(teacher, batch), values(alive, batch))
    assert (loads(first), loads(second)) == (1, 0)
