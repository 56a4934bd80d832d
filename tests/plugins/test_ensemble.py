"""Ensembles: averages of logits and of probabilities, weights, nesting."""

import math

import pytest
import tiny
import torch
from kdcore_ensemble import Ensemble, kdcore_teachers
from kdcore_hf import HfTeacher
from kdcore_losses.kullback_leibler import ForwardKL
from kdcore_rollouts.teacher import TeacherWrites
from pydantic import ValidationError

from kdcore import LanguageModel, Sampling, Teacher, UsageError, read, read_nll
from kdcore.testing import check_rollout, check_teacher, make_prompts
from kdcore.testing.fakes import TableTeacher, make_batch

pytestmark = pytest.mark.slow

BATCH = make_batch([[3, 1, 4, 1, 5], [9, 2, 6]])
IDS = BATCH.input_ids.flatten()[BATCH.valid]
ONE, OTHER = TableTeacher(seed=1), TableTeacher(seed=2)


class LossesOnly(Teacher):
    name = "losses-only"

    def gives_logits(self):
        return False


class Excluding(TableTeacher):
    """Gives no chance at all to the first ids."""

    def table(self):
        table = super().table()
        table[:, :7] = -math.inf
        return table


def logits(teacher):
    return read(teacher, BATCH)(BATCH.valid)


def probabilities(teacher):
    return teacher.table()[IDS].double().softmax(-1)


def test_average_of_logits_is_the_normalised_geometric_mean():
    found = logits(Ensemble(members=[ONE, OTHER]))
    torch.testing.assert_close(found, (ONE.table()[IDS] + OTHER.table()[IDS]) / 2)
    product = (probabilities(ONE) * probabilities(OTHER)).sqrt()
    expected = product / product.sum(-1, keepdim=True)
    torch.testing.assert_close(found.softmax(-1), expected.float())


def test_average_of_probabilities_is_the_mixture():
    found = logits(Ensemble(members=[ONE, OTHER], average="probs"))
    expected = (probabilities(ONE) + probabilities(OTHER)) / 2
    torch.testing.assert_close(found.exp(), expected.float())
    torch.testing.assert_close(found.softmax(-1), expected.float())


@pytest.mark.parametrize("average", ["logits", "probs"])
def test_weights_count_by_their_share(average):
    once = logits(Ensemble(members=[ONE, OTHER], weights=[3.0, 1.0], average=average))
    scaled = logits(Ensemble(members=[ONE, OTHER], weights=[0.75, 0.25], average=average))
    torch.testing.assert_close(once, scaled)
    thrice = logits(Ensemble(members=[ONE, ONE, ONE, OTHER], average=average))
    torch.testing.assert_close(once, thrice)


@pytest.mark.parametrize("average", ["logits", "probs"])
def test_one_member_is_that_member(average):
    alone = logits(Ensemble(members=[ONE], average=average))
    torch.testing.assert_close(alone.softmax(-1), logits(ONE).softmax(-1))


def test_temperature_comes_after_the_average():
    student = torch.zeros(len(IDS), 64)
    ensemble = logits(Ensemble(members=[ONE, OTHER], average="probs"))
    mixture = (probabilities(ONE) + probabilities(OTHER)) / 2
    tempered = mixture.sqrt() / mixture.sqrt().sum(-1, keepdim=True)
    expected = (tempered * (tempered * 64).log()).sum(-1).float()
    loss = ForwardKL(temperature=2.0, scale_by_t2=False)
    torch.testing.assert_close(loss.per_token(student, ensemble, IDS), expected)


def test_nested_ensembles():
    inner = Ensemble(members=[ONE, OTHER], average="probs")
    nested = logits(Ensemble(members=[inner, OTHER], average="probs"))
    flat = logits(Ensemble(members=[ONE, OTHER], weights=[1.0, 3.0], average="probs"))
    torch.testing.assert_close(nested, flat)


def test_an_id_that_one_member_excludes_keeps_its_share_of_the_mixture():
    members = [Excluding(), OTHER]
    mixed = logits(Ensemble(members=members, average="probs")).exp()
    torch.testing.assert_close(mixed[:, :7], probabilities(OTHER)[:, :7].float() / 2)
    assert (logits(Ensemble(members=members))[:, :7] == -math.inf).all()
    both = logits(Ensemble(members=[Excluding(), Excluding()], average="probs"))
    assert (both[:, :7] == -math.inf).all()


@pytest.mark.parametrize("average", ["logits", "probs"])
def test_contract(average):
    check_teacher(Ensemble(members=[ONE, OTHER], average=average), BATCH)


def test_members_logits_are_not_written_into():
    shared = ONE.table()

    class Held(Teacher):
        name = "held"

        def read(self, batch):
            return lambda positions: shared[: len(positions)]

    before = shared.clone()
    logits(Ensemble(members=[Held(), Held()]))
    logits(Ensemble(members=[Held(), Held()], average="probs"))
    assert shared.equal(before)


def test_likelihoods_are_those_of_the_average():
    ensemble = Ensemble(members=[ONE, OTHER], average="probs")
    labels = BATCH.labels[BATCH.valid]
    mixture = (probabilities(ONE) + probabilities(OTHER)) / 2
    expected = -mixture.gather(-1, labels[:, None])[:, 0].log()
    torch.testing.assert_close(read_nll(ensemble, BATCH)(BATCH.valid, labels), expected.float())


def test_a_member_without_logits_leaves_the_ensemble_without():
    ensemble = Ensemble(members=[ONE, LossesOnly()])
    assert not ensemble.gives_logits()
    assert Ensemble(members=[ONE]).gives_logits()


def test_members_and_weights_are_checked():
    with pytest.raises(ValidationError, match="members"):
        Ensemble(members=[])
    with pytest.raises(UsageError, match="1 weights for 2 members"):
        Ensemble(members=[ONE, OTHER], weights=[1.0])
    with pytest.raises(ValidationError, match="greater than 0"):
        Ensemble(members=[ONE, OTHER], weights=[1.0, 0.0])
    with pytest.raises(ValidationError, match="average"):
        Ensemble(members=[ONE], average="votes")


def test_hook_kdcore_teachers():
    assert [teacher.name for teacher in kdcore_teachers()] == ["ensemble"]


class Held(HfTeacher):
    """A teacher whose model is tiny, and has more ids than it shares."""

    def __init__(self, seed, vocabulary=64):
        super().__init__(model="tiny")
        self._model = LanguageModel(tiny.model(vocabulary=vocabulary, seed=seed).eval())
        self._seed = seed

    def fingerprint(self):
        return f"held({self._seed})"


SHARED = 60
PROMPTS = make_prompts(5)


def likeliest(members, average, shares, prompt, count):
    """The likeliest ids one after the other, each from a whole forward of all members."""
    ids, logs = list(prompt.ids), []
    for _ in range(count):
        each = [
            one._model.model(torch.tensor([ids]), use_cache=False).logits[0, -1, :SHARED].detach()
            for one in members
        ]
        if average == "logits":
            joined = sum(x * share for x, share in zip(each, shares, strict=True)).log_softmax(-1)
        else:
            mixed = sum(x.softmax(-1) * share for x, share in zip(each, shares, strict=True))
            joined = mixed.log()
        ids.append(int(joined.argmax()))
        logs.append(float(joined[ids[-1]]))
    return tuple(ids[len(prompt.ids) :]), logs


@pytest.mark.parametrize("average", ["logits", "probs", "losses"])
def test_it_writes_token_by_token_from_the_average(average):
    members = [Held(1), Held(2, vocabulary=70)]
    ensemble = Ensemble(members=members, weights=[3.0, 1.0], average=average)
    assert ensemble.writes()
    sampling = Sampling(6, temperature=0.0, vocabulary=SHARED)
    for prompt, one in zip(PROMPTS, ensemble.generate(PROMPTS, sampling), strict=True):
        ids, logs = likeliest(members, average, [0.75, 0.25], prompt, 6)
        assert one.ids == ids and one.source == "teacher"
        assert one.log_probs == pytest.approx(logs, abs=1e-5)
    alone = members[0].generate(PROMPTS, sampling)
    assert [one.ids for one in alone] != [one.ids for one in ensemble.generate(PROMPTS, sampling)]


def test_answers_end_one_by_one_in_every_member():
    sampling = Sampling(12, temperature=2.0, ends=frozenset(range(0, 60, 7)), vocabulary=SHARED)
    twins = Ensemble(members=[Held(1), Ensemble(members=[Held(1)])])
    found, alone = (each.generate(PROMPTS, sampling) for each in (twins, Held(1)))
    assert [one.ids for one in found] == [one.ids for one in alone]
    assert len({len(one.ids) for one in found}) > 1


def test_an_ensemble_writes_as_a_writer_does_and_only_if_all_members_can():
    check_rollout(
        TeacherWrites(max_new_tokens=8, keep=False), teacher=Ensemble(members=[Held(1), Held(2)])
    )
    assert not Ensemble(members=[Held(1), ONE]).writes()
