"""The writers: each keeps the contract, and does what its name says."""

import pytest
import tiny
from kdcore_hf import HfTeacher
from kdcore_rollouts.replay import Replay
from kdcore_rollouts.several import Several
from kdcore_rollouts.student import StudentWrites
from kdcore_rollouts.teacher import TeacherWrites

from kdcore import Completion, LanguageModel, Prompt, Rollout, Sampling, UsageError, component
from kdcore.testing import TableTeacher, check_rollout, make_prompts
from kdcore.testing.rollouts import WritingRun


class Held(HfTeacher):
    """A teacher whose model is tiny."""

    def __init__(self):
        super().__init__(model="tiny")
        self._model = LanguageModel(tiny.model(vocabulary=64, seed=3).eval())


def student(**options):
    return StudentWrites(**{"max_new_tokens": 8, **options})


MAKERS = {
    "student": student,
    "cool": lambda: student(temperature=0.7, top_k=9, top_p=0.8),
    "likeliest": lambda: student(temperature=0.0),
    "replay": lambda: Replay(of=student(), fresh=0.5, capacity=5, max_new_tokens=8),
    "several": lambda: Several(members=[student(), student(temperature=0.5)], max_new_tokens=8),
    "replay of several": lambda: Replay(
        of=Several(members=[student(), student()], max_new_tokens=8), max_new_tokens=8
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_writer_keeps_the_contract(make):
    check_rollout(make(), make)


def test_the_teacher_writes():
    writer = TeacherWrites(max_new_tokens=8, keep=False)
    check_rollout(writer, teacher=Held())
    (one,) = writer.generate(WritingRun(Held()), make_prompts(1))
    assert one.source == "teacher" and len(one.ids) <= 8


def test_another_teacher_than_the_runs_may_write():
    writer = TeacherWrites(max_new_tokens=8, teacher=Held(), keep=False)
    assert not writer.needs_teacher()
    check_rollout(writer)


def test_a_teacher_that_cannot_write_says_so():
    with pytest.raises(UsageError, match="only reads what others wrote"):
        TableTeacher().generate([], Sampling(4))


@component
class Drifting(Rollout):
    """Draws from a generator of its own: what it writes hangs on what it wrote before."""

    name = "drifting"

    def __post_init__(self):
        self.calls = 0

    def generate(self, run, prompts):
        self.calls += 1
        return [Completion((1 + self.calls % 60,), False) for _ in prompts]


@component
class Forgetful(Rollout):
    """Has state, and tells checkpoints nothing of it."""

    name = "forgetful"

    def __post_init__(self):
        self.seen = 0

    def generate(self, run, prompts):
        return [Completion((1 + (self.seen + one.seed) % 60,), False) for one in prompts]

    def generated(self, run, step, completions):
        self.seen += len(completions)


def test_the_check_finds_writers_that_drift_and_forget():
    with pytest.raises(AssertionError, match="the second time"):
        check_rollout(Drifting())
    with pytest.raises(AssertionError, match="state was handed"):
        check_rollout(Forgetful(), Forgetful)


def test_replay_hands_out_old_answers_with_their_prompts():
    replay = Replay(of=student(), fresh=0.0, capacity=3, max_new_tokens=8)
    run, before, now = WritingRun(), make_prompts(4), make_prompts(5, first=20)
    old = [
        Completion(one.ids, False, prompt=prompt)
        for prompt, one in zip(before, replay.generate(run, before), strict=True)
    ]
    replay.generated(run, 1, old)
    again = replay.generate(run, now)
    assert {id(one) for one in again} <= {id(one) for one in old[1:]}, "the oldest has left"
    assert all(one.prompt.document < 4 for one in again)


def test_several_members_answer_with_random_numbers_of_their_own():
    several = Several(members=[student(), student()], max_new_tokens=8)
    prompt = Prompt((3, 4), 5)
    ((first, second),) = several.generate(WritingRun(), [prompt])
    (alone,) = student().generate(WritingRun(), [prompt])
    assert first.ids == alone.ids != second.ids
