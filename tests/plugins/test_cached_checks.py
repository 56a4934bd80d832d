"""What flips, tears or vanishes in a store is asked of the teacher again, and told."""

import numpy as np
import pytest
import tiny
import torch
from caching import batches, cached, live, loads, run_in, values
from kdcore_cached.checks import CHECK, checks_of

KINDS = {"nll": {}, "topk": {"kind": "topk", "k": 4}, "sampled": {"kind": "sampled", "draws": 8}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder, "llama")
    return folder


def filled(run, model, **options):
    teacher = cached(run, model, **options)
    for batch in batches():
        teacher.complete(batch)
    (store,) = teacher._stores.values()
    return store


def array_in(store, array):
    """The numbers of a store's file."""
    return np.fromfile(store.folder / array.file, array.dtype).astype(np.float64)


def flip(path, at, bit=3):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_in_any_file_is_recomputed(tmp_path, model, kind):
    run = run_in(tmp_path)
    store = filled(run, model, **KINDS[kind])
    files = [*store.kind.arrays, CHECK]
    before = {each.file: array_in(store, each) for each in files}
    (there,) = np.nonzero(~store.kind.missing(store.arrays[-1]))
    for each in files:
        for slot in there[:3]:
            flip(store.folder / each.file, int(slot + 1) * each.bytes_per_token - 1)
            again = filled(run, model, **KINDS[kind])
            assert again.folder == store.folder
            for array in files[:-1]:
                found, known = array_in(store, array), before[array.file]
                near = np.allclose(found, known, rtol=1e-3, atol=1e-6, equal_nan=True)
                assert near, (each, slot)  # of one token alone: other kernels, other last bits
            reopened = cached(run, model, **KINDS[kind])
            for batch in batches():
                reopened.complete(batch)
            assert loads(reopened) == 0, (each, slot)


def test_what_is_damaged_is_reported_and_right_again(tmp_path, model):
    run = run_in(tmp_path)
    store = filled(run, model)
    path = store.folder / "nll.f32"
    content = np.fromfile(path, np.float32)
    there = np.flatnonzero(~np.isnan(content))
    content[there[:3]] *= np.float32(1.5)
    content.tofile(path)
    run.said.clear()
    again = cached(run, model)
    alive = live(run, model)
    for batch in batches():
        assert torch.equal(values(again, batch), values(alive, batch))
    assert loads(again) == 1
    assert any("3 values are damaged" in said for said in run.said)


def test_a_store_of_an_earlier_version_is_read_as_it_is(tmp_path, model):
    run = run_in(tmp_path)
    store = filled(run, model)
    (store.folder / CHECK.file).unlink()
    again = cached(run, model)
    for batch in batches():
        again.complete(batch)
    assert loads(again) == 0
    assert not (store.folder / CHECK.file).exists()


def test_every_single_bit_and_every_other_place_shows():
    drawn = np.random.default_rng(0)
    values = [drawn.normal(size=(64, 5)).astype(np.float16), drawn.integers(0, 9, (64,), np.uint8)]
    slots = np.arange(64)
    known = checks_of(slots, values)
    assert known.min() > 0
    missed = 0
    for bit in range(80):
        raw = values[0].view(np.uint8).copy()
        raw[:, bit // 8] ^= 1 << bit % 8
        missed += int((checks_of(slots, [raw.view(np.float16), values[1]]) == known).sum())
    assert missed <= 2  # of 5,120, by chance 0.08
    assert (checks_of(slots + 1, values) == known).sum() <= 1
    assert (checks_of(slots[::-1].copy(), [each[::-1] for each in values])[::-1] == known).all()
