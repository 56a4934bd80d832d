"""Kinds "topk" and "sampled" of the teacher `cached`."""

import json

import numpy as np
import pytest
import tiny
import torch
from caching import Spy, batches, cached, live, loads, run_in
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcore_cached import CachedTeacher
from kdcore_cached.buckets import Sampled, TopK
from kdcore_cached.drawing import drawn, uniform
from kdcore_losses import ForwardKL

from kdcore import UsageError, read, read_nll
from kdcore.objective.losses import values_of
from kdcore.objective.teachers import read_outputs
from kdcore.testing import check_teacher

pytestmark = pytest.mark.slow

TOP, DRAWN = {"kind": "topk", "k": 5}, {"kind": "sampled", "draws": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder, "llama")
    return folder


def outputs_at(teacher, batch):
    return read_outputs(teacher, batch)(batch.valid)


def log_probabilities(teacher, batch):
    return read(teacher, batch)(batch.valid).log_softmax(-1)


# topk


def test_the_likeliest_ids_and_all_masses_everywhere(tmp_path, model):
    run = run_in(tmp_path)
    alive = live(run, model)
    first, second = cached(run, model, **TOP), cached(run, model, **TOP)
    for teacher in (first, second):
        for batch in batches():
            ids, logs, _ = outputs_at(teacher, batch)
            whole = log_probabilities(alive, batch)
            assert torch.equal(ids, whole.topk(5).indices)
            assert torch.equal(logs[:, :5], whole.gather(1, ids).half().float())
            others = whole.exp().scatter(1, ids, 0.0).sum(-1).log()
            torch.testing.assert_close(logs[:, 5], others, rtol=1e-3, atol=1e-5)
    assert (loads(first), loads(second)) == (1, 0) and first.teacher.batches == 3


@pytest.mark.parametrize("kind", [TOP, DRAWN], ids=["topk", "sampled"])
def test_it_keeps_the_contract_of_teachers(tmp_path, model, kind):
    (batch,) = batches((5,))
    check_teacher(cached(run_in(tmp_path), model, **kind), batch)


@pytest.mark.parametrize("kind", [TOP, DRAWN], ids=["topk", "sampled"])
def test_other_batches_and_parts_of_them(tmp_path, model, kind):
    run = run_in(tmp_path)
    (batch,) = batches((5,))
    whole = outputs_at(cached(run, model, **kind), batch)
    again = cached(run, model, **kind)
    apart = [outputs_at(again, some) for some in batches((1, 1, 1, 1, 1))]
    for n, part in enumerate(whole[:2]):
        assert torch.equal(part, torch.cat([some[n] for some in apart]))
    order = torch.randperm(len(batch.valid))[:7]
    some = read_outputs(again, batch)(batch.valid[order])
    assert torch.equal(some.ids, whole.ids[order]) and loads(again) == 0


@pytest.mark.parametrize("kind", [TOP, DRAWN], ids=["topk", "sampled"])
def test_only_what_is_missing_is_asked_for(tmp_path, model, kind):
    run = run_in(tmp_path)
    first, second = batches((2, 3))
    outputs_at(cached(run, model, **kind), first)
    (both,) = batches((5,))
    teacher = cached(run, model, **kind)
    asked = []
    inner = teacher.teacher.read

    def watched(batch):
        asked.append(len(batch.valid))
        return inner(batch)

    object.__setattr__(teacher.teacher, "read", watched)
    outputs_at(teacher, both)
    assert asked == [len(second.valid)]


@pytest.mark.parametrize("options", [{"kind": "topk", "k": 1}, {"kind": "sampled", "draws": 1}])
def test_a_single_id(tmp_path, model, options):
    run = run_in(tmp_path)
    alive = live(run, model)
    for batch in batches():
        for _ in range(2):
            ids, logs, _ = outputs_at(cached(run, model, **options), batch)
            assert (ids.shape[1], logs.shape[1]) == (1, 2)
            if options["kind"] == "topk":
                assert torch.equal(ids[:, 0], log_probabilities(alive, batch).argmax(-1))


def test_more_ids_than_there_are(tmp_path, model):
    teacher = cached(run_in(tmp_path), model, kind="topk", k=1000)
    (batch,) = batches((5,))
    found = outputs_at(teacher, batch)
    assert found.ids.shape[1] == batch.vocabulary - 1
    assert torch.equal(found.ids.sort(-1).values.diff(dim=-1).min(), torch.tensor(1))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 20), k=st.integers(1, 30))
def test_what_half_precision_costs(seed, scale, k):
    """No probability is off by more than the kind says, nor is any gradient of the forward KL."""
    made = torch.Generator().manual_seed(seed)
    logits, student = scale * torch.randn(2, 6, 31, generator=made)
    exact = logits.log_softmax(-1)
    known, ids = exact.topk(k)
    others = exact.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    stored = TopK(k, 31).coarse((ids.int().numpy(), torch.cat([known, others], -1).half().numpy()))
    assert (
        stored.log_probabilities.exp() - torch.cat([known, others], -1).exp()
    ).abs().max() < 2e-4
    whole = stored._replace(log_probabilities=torch.cat([known, others], -1))
    values, labels, ones = (
        values_of([ForwardKL()]),
        torch.zeros(6, dtype=torch.long),
        torch.ones(1, 6),
    )
    gradients = [values(student, each, labels, ones)[1] for each in (stored, whole)]
    assert (gradients[0] - gradients[1]).abs().max() < 4e-4


def test_files_and_what_they_are_bound_to(tmp_path, model):
    run = run_in(tmp_path)
    (batch,) = batches((5,))
    for kind in (TOP, {**TOP, "k": 6}, DRAWN, {**DRAWN, "seed": 1}, {**DRAWN, "draws": 21}, {}):
        teacher = cached(run, model, **kind)
        outputs_at(teacher, batch) if kind else read_nll(teacher, batch)
        assert loads(teacher) == 1
    metas = [json.loads(path.read_text()) for path in run.caches.glob("*/meta.json")]
    assert len(metas) == 6
    assert sorted(meta.get("k", 0) for meta in metas) == [0, 0, 0, 0, 5, 6]
    assert {(meta["draws"], meta["seed"]) for meta in metas if meta["kind"] == "sampled"} == {
        (20, 0),
        (20, 1),
        (21, 0),
    }
    (top,) = (
        path
        for path in run.caches.iterdir()
        if json.loads((path / "meta.json").read_text()).get("k") == 5
    )
    sizes = {path.name: path.stat().st_size / 40 for path in top.iterdir()}
    del sizes["meta.json"], sizes["about.json"]
    assert sizes == {"ids.i32": 20, "log_probabilities.f16": 12, "known.u1": 1, "check.u16": 2}
    assert cached(run, model, **TOP).bytes_per_token() == 35


def test_bytes_per_token_are_within_the_target():
    teacher = CachedTeacher(teacher=Spy(model="m"), kind="topk")
    assert teacher.bytes_per_token() <= 6.2 * 32


@pytest.mark.parametrize("file", ["ids.i32", "log_probabilities.f16", "known.u1"])
def test_damage_is_found_and_mended(tmp_path, model, file):
    run = run_in(tmp_path)
    (batch,) = batches((5,))
    before = outputs_at(cached(run, model, **TOP), batch)
    (store,) = run.caches.iterdir()
    (store / file).write_bytes((store / file).read_bytes()[:-1])
    teacher = cached(run, model, **TOP)
    again = outputs_at(teacher, batch)
    assert torch.equal(again.ids, before.ids) and loads(teacher) == 1
    assert "is damaged: it is made anew" in run.said[-2]


def test_what_it_gives_and_what_not(tmp_path, model):
    teacher = cached(run_in(tmp_path), model, **TOP)
    (batch,) = batches((5,))
    assert teacher.gives_logits() and not teacher.gives_losses() and not teacher.is_estimate()
    assert teacher.ids_known() == 5
    for ask in (read, read_nll):
        with pytest.raises(UsageError, match="teacher 'cached' knows 5 ids at each position"):
            ask(teacher, batch)


# sampled


def test_the_draws_hang_on_seed_and_place_only():
    document, offset = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    one = uniform(0, document, offset, 50)
    assert one.shape == (4, 50) and one.min() >= 0 and one.max() < 1
    assert np.array_equal(uniform(0, document[2:], offset[2:], 50), one[2:])
    assert len(np.unique(np.concatenate([one, uniform(1, document, offset, 50)]))) == 400
    many = uniform(3, np.arange(2000), np.zeros(2000, np.int64), 10)
    assert abs(many.mean() - 0.5) < 4 * (1 / 12 / many.size) ** 0.5
    # Streams of neighbouring places are not alike.
    assert abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 0.1


def test_ids_without_probability_are_never_drawn():
    logits = torch.full((50, 9), -torch.inf)
    logits[:, [0, 4]] = torch.tensor([0.0, 1.0])
    ids = drawn(logits, 0, np.arange(50), np.zeros(50, np.int64), 40)
    assert set(ids.unique().tolist()) == {0, 4}
    assert abs((ids == 4).float().mean() - torch.tensor(1.0).sigmoid()) < 0.05


def known_of(logits, seed, draws=20):
    """What the kind stores of a token with these logits, and tells."""
    kind = Sampled(draws, seed, logits.shape[-1])
    ids = drawn(logits, seed, np.zeros(len(logits), np.int64), np.arange(len(logits)), draws)
    return ids, kind.coarse([part.numpy() for part in kind._counted(ids, logits.shape[-1])])


@pytest.mark.parametrize("vocabulary", [6, 31])
def test_shares_of_the_draws(vocabulary):
    """Also where so many are drawn that the arrays hold all ids but one."""
    logits = torch.randn(8, vocabulary, generator=torch.Generator().manual_seed(0))
    ids, known = known_of(logits, seed=1)
    assert known.ids.shape[1] == min(20, vocabulary - 1)
    shares = torch.zeros(8, vocabulary).scatter_add(1, ids, torch.full(ids.shape, 1 / 20))
    found = known.log_probabilities.exp()
    torch.testing.assert_close(found[:, :-1], shares.gather(1, known.ids))
    torch.testing.assert_close(found.sum(-1), torch.ones(8))


def test_the_gradient_is_that_of_the_shares():
    student, teacher = torch.randn(2, 8, 31, generator=torch.Generator().manual_seed(0))
    ids, known = known_of(teacher, seed=1)
    shares = torch.zeros(8, 31).scatter_add(1, ids, torch.full(ids.shape, 1 / 20))
    values = values_of([ForwardKL()])
    _, gradient = values(student, known, torch.zeros(8, dtype=torch.long), torch.ones(1, 8))
    torch.testing.assert_close(gradient, student.softmax(-1) - shares, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [6, 31])
def test_the_mean_gradient_is_that_of_the_whole_distribution(vocabulary):
    """Within five standard errors, by its own variance, in every logit; seeds 0 to 399."""
    made = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 5, vocabulary, generator=made, dtype=torch.float64)
    values, labels = values_of([ForwardKL()]), torch.zeros(5, dtype=torch.long)
    ones = torch.ones(1, 5, dtype=torch.float64)
    each = torch.stack(
        [values(student, known_of(teacher, seed)[1], labels, ones)[1] for seed in range(400)]
    )
    _, exact = values(student, teacher, labels, ones)
    error = each.std(0) / 20
    assert ((each.mean(0) - exact).abs() < 5 * error + 1e-7).all()
    assert (error > 0).all() and error.max() < 0.01


def test_torn_slots_are_seen():
    kind = TopK(3, 10)
    ids = np.array([[0, 1, 2], [0, 0, 0], [4, 5, 11], [1, 2, 3]], np.int32)
    quarter = np.log(np.full((4, 4), 0.25)).astype(np.float16)
    quarter[3] = 0
    assert kind.broken((ids, quarter), 10).tolist() == [False, True, True, True]
    kind = Sampled(3, 0, 10)
    counts = np.array([[2, 1, 0], [3, 0, 0], [1, 1, 1], [0, 0, 0]], np.uint8)
    assert kind.broken((ids, counts), 10).tolist() == [False, True, True, True]


def test_how_far_two_answers_differ():
    kind = TopK(2, 10)
    logs = np.log(np.array([[0.5, 0.25, 0.25]] * 3)).astype(np.float16)
    ids = np.array([[1, 2], [1, 2], [1, 2]], np.int32)
    other = np.array([[1, 2], [2, 1], [1, 3]], np.int32)
    found = kind.differs((ids, logs), (other, logs))
    np.testing.assert_allclose(found, [0, 0.25, 0.25], atol=1e-3)
