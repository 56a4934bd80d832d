"""A sharded student skips the same steps as a whole one, wherever a gradient is not finite.

In fp16 the loss scaler judges; otherwise the engine does, on a GPU within the optimizer's kernels.
"""

import pytest
import tiny
import torch
from several import several
from sharded_runs import KL, TEACHER, outcome, recipe, train

from kdcore.runs import runner
from kdcore.sharding.wrapping import local
from kdcore.training.non_finite import NonFiniteCheck
from kdcore.training.step import TrainStep

pytestmark = pytest.mark.slow

HIDDEN = (
    TEACHER
    + '\n[[loss]]\nuse = "hidden-mse"\nlayers = [[0, 1], [-1, -1]]\nprojection = "linear"\n'
    + '\n[[loss]]\nuse = "kl"\n'
)
OPTIONS = {"steps": 6, "save_every": 3, "eval_every": 6, "precision": '"fp16"'}
BAD, EVERY = 4, None
STEPPED = [(1, 2.0**16), (2, 2.0**16), (3, 2.0**17), (4, 2.0**16), (5, 2.0**16), (6, 2.0**16)]
CASES = {  # objective, options, parameters that overflow, and in which process
    "kl": (KL, {}, "parameters", 1),
    "sgd": (KL, {"optimizer": '"sgd"', "clip": 0.0}, "parameters", 0),
    "projections": (HIDDEN, {}, "learned", EVERY),
}


def scaled(options):
    """An accelerator in fp16 on a CPU, which accelerate refuses: its scaler works there."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=False)
    made = Accelerator(mixed_precision="no")
    made.state._mixed_precision, made.native_amp = "fp16", True
    made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    return made


def stepped(rank, folder, texts, overflows):
    """The step and the scale after each step of each recipe."""
    runner.make_accelerator = scaled
    clip, apply, seen, found = TrainStep.clip, TrainStep.apply, [], []

    def overflowing(step):
        which, where = overflows[len(found)]
        if step.run.step + 1 == BAD and where in (rank, EVERY):
            local(getattr(step, which)[0].grad).view(-1)[0] = torch.inf
        return clip(step)

    def noting(step):
        apply(step)
        seen.append((step.run.step + 1, step.accelerator.scaler.get_scale()))

    TrainStep.clip, TrainStep.apply = overflowing, noting
    for n, text in enumerate(texts):
        seen.clear()
        place = folder / str(n)
        place.mkdir(exist_ok=True)
        train(rank, place, [text])
        found.append(list(seen))
    return found


def judged_late(rank, folder, text, where):
    """Train with verdicts that the optimizer's kernels read, as on a GPU."""
    begin, clip = NonFiniteCheck.__init__, TrainStep.clip

    def late(check, *arguments, **named):
        begin(check, *arguments, **named)
        check.deferred = True

    def infinite(step):
        if step.run.step + 1 == 2 and where in (rank, EVERY):
            local(step.parameters[0].grad).view(-1)[0] = torch.inf
        return clip(step)

    NonFiniteCheck.__init__, TrainStep.clip = late, infinite
    train(rank, folder, [text])


def test_verdicts_within_the_optimizer_skip_all_parts(tmp_path):
    teacher, one, two = (tmp_path / name for name in ("teacher", "one", "two"))
    for each in (teacher, one, two):
        each.mkdir()
    tiny.save(teacher)
    text = recipe(teacher, steps=3, save_every=3, eval_every=3, non_finite='"skip"')
    several(1, judged_late, one, text, EVERY)
    several(2, judged_late, two, text, 1)
    weights, found = outcome(one)[0], outcome(two)[0]
    for key, weight in weights.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of one and of two processes, and what each process did."""
    teacher = tmp_path_factory.mktemp("teacher")
    tiny.save(teacher)
    every = [(objective, OPTIONS | options) for objective, options, _, _ in CASES.values()]
    texts = [recipe(teacher, objective, shard='shard = "full"', **o) for objective, o in every]
    overflows = [(which, where) for _, _, which, where in CASES.values()]
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    (alone,) = several(1, stepped, one, texts, [(which, EVERY) for which, _ in overflows])
    return one, two, alone, several(2, stepped, two, texts, overflows)


@pytest.mark.parametrize("name", CASES)
def test_every_process_skips_a_step_that_overflows_in_one(trained, name):
    place = list(CASES).index(name)
    one, two, alone, both = trained
    assert alone[place] == STEPPED
    assert [each[place] for each in both] == [STEPPED, STEPPED]
    weights, records = outcome(one / str(place))
    found, others = outcome(two / str(place))
    for key, weight in weights.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=5e-3)
    for each, expected in zip(others, records, strict=True):
        assert each.get("loss") == pytest.approx(expected.get("loss"), abs=1e-4)
