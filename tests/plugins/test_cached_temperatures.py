"""Kind "topk" of the teacher `cached` at temperatures other than 1: gradients, files, warnings."""

import logging

import numpy as np
import pytest
import tiny
import torch
from caching import Spy, batches, cached, live, loads, run_in
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcore_cached.building import Work
from kdcore_cached.catalogue import Kept
from kdcore_cached.others import (
    first_filled,
    ids_that_hold,
    log_share_of_others,
    logit_of_others,
)
from kdcore_losses import CrossEntropy, ForwardKL, ReverseKL

from kdcore import Teacher, UsageError, read
from kdcore.objective.losses import values_of, warn_untempered
from kdcore.objective.teachers import read_outputs
from kdcore.testing import check_teacher

pytestmark = pytest.mark.slow

TOP = {"kind": "topk", "k": 5}
WARM = ForwardKL(temperature=2.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder, "llama")
    return folder


def outputs_at(teacher, batch):
    return read_outputs(teacher, batch)(batch.valid)


def gradient(loss, student, teacher):
    labels = torch.zeros(len(student), dtype=torch.long)
    return values_of([loss])(student, teacher, labels, torch.ones(1, len(student)))[1]


def store_of(run):
    (folder,) = run.caches.iterdir()
    return folder


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is trained


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("loss", [ForwardKL, ReverseKL])
def test_the_gradient_with_all_ids_but_one_is_that_of_the_live_teacher(
    tmp_path, model, loss, temperature
):
    loss = loss(temperature=temperature)
    run = run_in(tmp_path, loss)
    (batch,) = batches((5,))
    alive = live(run, model)
    exact = read(alive, batch)(batch.valid)
    student = exact + torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        found = outputs_at(cached(run, model, kind="topk", k=1000), batch)
        close = {"rtol": 5e-3, "atol": 1e-3 * temperature}
        whole = gradient(loss, student, exact)
        torch.testing.assert_close(gradient(loss, student, found), whole, **close)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 30),
    temperature=st.sampled_from([0.5, 0.7, 2.0, 4.0, 8.0]),
    k=st.integers(1, 30),
)
def test_the_stored_share_gives_the_others_their_mass(seed, scale, temperature, k):
    logs = (scale * torch.randn(6, 31, generator=torch.Generator().manual_seed(seed))).log_softmax(
        -1
    )
    known, ids = logs.topk(k)
    stored = log_share_of_others(logs, ids, temperature)
    assert stored.dtype == torch.float16 and (stored < 0).all()
    at = (logs.double() / temperature).softmax(-1)
    exact = torch.cat([at.gather(1, ids), at.scatter(1, ids, 0).sum(-1, keepdim=True)], -1)
    logits = torch.cat([known, logit_of_others(known, stored, temperature)[:, None]], -1)
    found = (logits / temperature).softmax(-1)
    torch.testing.assert_close(found.double(), exact, rtol=5e-3, atol=2e-4)


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_shares_at_the_ends_stay_finite(kept):
    """All mass with the known ids, and none."""
    logs = torch.tensor([[0.0, -torch.inf, -torch.inf]]) if kept else torch.tensor([[-90.0, 0, 0]])
    ids = torch.zeros(1, 1, dtype=torch.long)
    share = log_share_of_others(logs.clone(), ids, 2.0)
    assert share.item() == (-torch.inf if kept else -(2.0**-24))
    assert logit_of_others(logs[:, :1], share, 2.0).isfinite().item() != bool(kept)


def test_it_keeps_the_contract_of_teachers(tmp_path, model):
    (batch,) = batches((5,))
    check_teacher(cached(run_in(tmp_path, WARM), model, **TOP), batch)


# Files


def test_a_file_for_each_temperature_in_addition_to_the_bound_ones(tmp_path, model):
    (batch,) = batches((5,))
    run = run_in(tmp_path, WARM, ForwardKL(temperature=0.5), ForwardKL(), CrossEntropy())
    teacher = cached(run, model, **TOP)
    assert set(outputs_at(teacher, batch).tempered) == {0.5, 2.0}
    names = {"about.json", "check.u16", "ids.i32", "known.u1", "log_probabilities.f16", "meta.json"}
    extra_files = {"others_at_0.5.f16", "others_at_2.0.f16"}
    hashes = {f"{name}.check.u16" for name in extra_files}
    assert set(bytes_of(store_of(run))) == names | extra_files | hashes
    assert teacher.bytes_per_token() == 39


def test_an_old_store_stays_as_it_is_and_is_filled_in(tmp_path, model):
    (batch,) = batches((5,))
    run, warm = run_in(tmp_path), run_in(tmp_path, WARM)
    outputs_at(cached(run, model, **TOP), batch)
    before = bytes_of(store_of(run))
    for times in range(2):
        teacher = cached(warm, model, **TOP)
        found = outputs_at(teacher, batch)
        assert loads(teacher) == 1 - times and set(found.tempered) == {2.0}
    after = bytes_of(store_of(run))
    assert len(after) == len(before) + 2
    assert all(after[name] == held for name, held in before.items() if name != "about.json")
    again = cached(run, model, **TOP)
    assert outputs_at(again, batch).tempered == {} and loads(again) == 0


def test_only_what_is_missing_at_the_temperature_is_asked_for(tmp_path, model):
    first, second = batches((2, 3))
    (both,) = batches((5,))
    outputs_at(cached(run_in(tmp_path), model, **TOP), both)
    warm = run_in(tmp_path, WARM)
    outputs_at(cached(warm, model, **TOP), first)
    teacher, asked = cached(warm, model, **TOP), []
    inner = teacher.teacher.read
    watched = lambda batch: (asked.append(len(batch.valid)), inner(batch))[1]  # noqa: E731
    object.__setattr__(teacher.teacher, "read", watched)
    outputs_at(teacher, both)
    assert asked == [len(second.valid)]


def test_only_a_torn_file_is_rebuilt(tmp_path, model):
    (batch,) = batches((5,))
    run = run_in(tmp_path, WARM)
    before = outputs_at(cached(run, model, **TOP), batch)
    path = store_of(run) / "others_at_2.0.f16"
    ids = (store_of(run) / "ids.i32").read_bytes()
    path.write_bytes(path.read_bytes()[:-1])
    assert "different lengths" in Kept(store_of(run)).error()
    again = outputs_at(cached(run, model, **TOP), batch)
    assert torch.equal(again.tempered[2.0], before.tempered[2.0])
    assert (store_of(run) / "ids.i32").read_bytes() == ids
    assert any("others_at_2.0.f16 is damaged: it is made anew" in said for said in run.said)


@pytest.mark.parametrize("file", ["others_at_2.0.f16", "others_at_2.0.f16.check.u16"])
def test_a_flipped_bit_is_recomputed(tmp_path, model, file):
    (batch,) = batches((5,))
    run = run_in(tmp_path, WARM)
    before = outputs_at(cached(run, model, **TOP), batch)
    path = store_of(run) / file
    whole = path.read_bytes()
    values = np.frombuffer(whole, np.uint16).copy()
    values[np.flatnonzero(values)[0]] ^= 1 << 3
    values.tofile(path)
    again = outputs_at(cached(run, model, **TOP), batch)
    assert torch.equal(again.tempered[2.0], before.tempered[2.0])
    assert path.read_bytes() == whole
    assert any("1 values are damaged" in said for said in run.said)


def test_shares_of_a_version_without_hashes_are_read_as_they_are(tmp_path, model):
    (batch,) = batches((5,))
    run = run_in(tmp_path, WARM)
    outputs_at(cached(run, model, **TOP), batch)
    (store_of(run) / "others_at_2.0.f16.check.u16").unlink()
    teacher = cached(run, model, **TOP)
    assert set(outputs_at(teacher, batch).tempered) == {2.0} and loads(teacher) == 0


def test_numbers_that_cannot_be_are_forgotten(tmp_path, model):
    (batch,) = batches((5,))
    run = run_in(tmp_path, WARM)
    outputs_at(cached(run, model, **TOP), batch)
    path = store_of(run) / "others_at_2.0.f16"
    shares = np.fromfile(path, np.float16)
    (place, other) = np.flatnonzero(shares)[:2]
    shares[place], shares[other] = np.nan, 0.5
    shares.tofile(path)
    assert Kept(store_of(run)).forget_broken() == 2 and Kept(store_of(run)).forget_broken() == 0
    teacher = cached(run, model, **TOP)
    outputs_at(teacher, batch)
    assert loads(teacher) == 1


def test_verify_compares_the_shares_too(tmp_path, model):
    (batch,) = batches((5,))
    run = run_in(tmp_path, WARM)
    teacher = cached(run, model, **TOP)
    outputs_at(teacher, batch)
    work = Work(run, teacher, [], "train")
    assert work._apart(batch)[0].max() < 1e-3
    store = teacher.store(batch)
    store.extras[0][store.slots(batch)[0]] = np.log(0.5)
    store._extra_checks[0][:] = 0  # as if it had been written so
    assert work._apart(batch)[0].max() > 0.1


# What is told


def test_too_little_mass_is_reported_once_with_the_figure_and_a_way_out(tmp_path, model, caplog):
    hot = run_in(tmp_path, ForwardKL(temperature=50.0), ForwardKL(temperature=0.1))
    (batch,) = batches((5,))
    mass = read(live(hot, model), batch)(batch.valid).div(50).softmax(-1).topk(2).values.sum(-1)
    for _ in range(2):
        caplog.clear()
        teacher = cached(hot, model, kind="topk", k=2)
        outputs_at(teacher, batch)
        outputs_at(teacher, batch)
        (said,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
        assert f"2 stored ids hold {mass.mean().item():.1%} of the teacher's mass at " in said
        wanted = ids_that_hold(0.1, read(live(hot, model), batch)(batch.valid).div(50).softmax(-1))
        assert "temperature 50: " in said and said.endswith(f"k = {wanted} would hold a tenth")


def test_plan_tells_it_of_what_is_stored(tmp_path, model):
    hot = run_in(tmp_path, ForwardKL(temperature=50.0))
    (batch,) = batches((5,))
    teacher = cached(hot, model, kind="topk", k=2)
    assert list(teacher.warnings(hot.recipe, hot.caches)) == []
    outputs_at(teacher, batch)
    (said,) = teacher.warnings(hot.recipe, hot.caches)
    assert "of the teacher's mass at temperature 50" in said
    cold = run_in(tmp_path, ForwardKL())
    assert list(teacher.warnings(cold.recipe, hot.caches)) == []
    assert list(cached(hot, model, kind="topk", k=3).warnings(hot.recipe, hot.caches)) == []


def test_how_many_ids_hold_a_share():
    p = torch.tensor([[0.02] * 50, [0.04] * 25 + [0.0] * 25])
    assert ids_that_hold(0.1, p) == 4  # .03 each on average
    assert ids_that_hold(1.0, p) == 50


def test_the_first_tokens_that_are_there():
    values = np.zeros(600_000, np.float16)
    values[[3, 500_000]] = -1, -2
    assert first_filled(values).tolist() == [-1, -2]
    assert len(first_filled(values - 1)) == 2000


class Foreign(Teacher):
    """Somebody's, that knows three ids."""

    name = "foreign"

    def ids_known(self):
        return 3


def test_a_teacher_that_does_not_say_is_warned_of(caplog):
    warn_untempered(Foreign(), [WARM, ForwardKL(), CrossEntropy()])
    (said,) = [one.getMessage() for one in caplog.records]
    assert "'foreign' does not give the mass" in said and "temperature 2" in said
    caplog.clear()
    warn_untempered(None, [WARM])
    assert not caplog.records


def test_where_the_teacher_is_gone_an_old_store_serves_temperature_1_only(tmp_path, model):
    (batch,) = batches((5,))
    run, warm = run_in(tmp_path), run_in(tmp_path, WARM)
    outputs_at(cached(run, model, **TOP), batch)

    class Gone(Spy):
        name = "hf"

        def load(self, run):
            raise UsageError("no weights in this folder")

    for where in (run, warm):
        teacher = cached(where, model, **TOP)
        object.__setattr__(teacher, "teacher", Gone(model=str(model)))
        if where is run:
            outputs_at(teacher, batch)
        else:
            with pytest.raises(UsageError, match="no weights"):
                outputs_at(teacher, batch)
