import pickle
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import given
import pytest
import torch
from engine import Held, term
from kdcore_losses import CrossEntropy, ForwardKL
from kdcore_selections import Hardest
from training import Eval, assert_equal, records, trainer, weights

from kdcore import PreparedLoss, stop_requested
from kdcore.errors import Interrupted, Unreachable
from kdcore.rng import RandomState
from kdcore.training.signals import Signals
from kdcore.training.step import TrainStep

ROWS = given.packed_rows()
TEACHER = given.model(seed=1)


@pytest.mark.slow
def test_training_learns(tmp_path):
    made = trainer(tmp_path, steps=16)
    made.train()
    losses = [record.loss for record in records(made)]
    assert losses[-1] < 0.8 * losses[0]
    assert made.run.step == 16


def test_it_is_the_same_again(tmp_path):
    one, other = (trainer(tmp_path / name, steps=3) for name in ("one", "other"))
    one.train(), other.train()
    assert_equal(weights(one), weights(other))


@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("selection", [None, Hardest(keep=0.5)])
def test_micro_batches_change_nothing_but_rounding(tmp_path, micro_batch, selection):
    one = trainer(tmp_path, steps=3, micro_batch=4, selection=selection)
    other = trainer(tmp_path, steps=3, micro_batch=micro_batch, selection=selection)
    one.train(), other.train()
    for a, b in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_records_are_means_over_their_steps(tmp_path):
    """Two trainers on the same seed: one logs every step, the other every third."""
    fine, coarse = trainer(tmp_path, log_every=1), trainer(tmp_path, log_every=3)
    fine.train(), coarse.train()
    each = records(fine)
    assert [record.step for record in each] == [1, 2, 3, 4, 5, 6]
    assert [record.step for record in records(coarse)] == [3, 6]
    for n, record in enumerate(records(coarse)):
        some = each[3 * n : 3 * n + 3]
        assert record.tokens == some[-1].tokens
        assert record.lr == some[-1].lr
        assert record.loss == pytest.approx(sum(r.loss for r in some) / 3, rel=1e-6)
        assert record.loss == pytest.approx(
            sum(record.weights[label] * value for label, value in record.terms.items())
        )
        for label in ("kl", "ce"):
            mean = sum(r.terms[label] for r in some) / 3
            assert record.terms[label] == pytest.approx(mean, rel=1e-6)
    assert each[-1].tokens == 3 * 43  # 24 rows of 8: three epochs


def test_events_come_in_order(tmp_path):
    asked = Eval()
    options = {"eval_first": True, "eval_every": 2, "save_every": 3, "log_every": 2}
    made = trainer(tmp_path, steps=4, evals=[asked], **options)
    made.train()
    names = {
        "kdcore_step_start": "start",
        "kdcore_log": "log",
        "kdcore_scores": "scores",
        "kdcore_checkpoint": "checkpoint",
    }
    seen = [names[hook] for hook, _ in made.host.seen]
    assert seen == [
        "scores",
        *["start"],
        *["start", "log", "scores"],
        *["start", "log", "checkpoint"],
        *["start", "log", "scores", "checkpoint"],
    ]
    assert asked.steps == [0, 2, 4]
    assert [event["step"] for event in made.host.of("kdcore_step_start")] == [1, 2, 3, 4]
    assert [event["step"] for event in made.host.of("kdcore_checkpoint")] == [3, 4]
    assert made.host.of("kdcore_checkpoint")[0]["path"] == tmp_path / "checkpoints" / "step-3"
    assert made.host.of("kdcore_scores")[1]["scores"] == {"eval/asked": 2.0}


@pytest.mark.parametrize(("batch", "due"), [(4, [2, 4, 6]), (3, [3, 6]), (8, [1, 2, 3, 4, 5, 6])])
def test_what_is_due_each_epoch(tmp_path, batch, due):
    """After the step that takes the epoch's last row: 8 rows in an epoch."""
    asked = Eval()
    made = trainer(tmp_path, batch=batch, evals=[asked], eval_every="epoch")
    made.train()
    assert asked.steps == due


# What goes wrong


def test_a_teacher_is_never_in_training_mode(tmp_path):
    """With dropout of one half, two readings agree only if it is off."""
    dropout = dict.fromkeys(given.NO_DROPOUT, 0.5)
    other = given.model("gpt2", seed=3, **dropout).train()
    teacher = Held(other)

    def loss():
        other.train()
        made = trainer(tmp_path, terms=[term(ForwardKL())])
        made.run.recipe.teacher = teacher
        made.step(1)
        return made.recorder.record(0.0).loss

    assert loss() == loss()
    assert not other.training


def test_the_student_is_in_training_mode_after_an_evaluation(tmp_path):
    modes = []

    class Looks(CrossEntropy):
        def per_token(self, student, teacher, labels):
            modes.append(made.run.student.training)
            return super().per_token(student, teacher, labels)

    made = trainer(tmp_path, terms=[term(Looks())], steps=2)
    made.step(1)
    made.run.student.eval()
    made.step(2)
    assert set(modes) == {True}


def test_clipping(tmp_path):
    norms = []
    for clip in (0.0, 1e-3):
        made = trainer(tmp_path, clip=clip)
        inner = made.optimizer.step

        def step(inner=inner, made=made):
            grads = [p.grad for p in made.run.student.parameters()]
            norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
            inner()

        made.optimizer.step = step
        made.step(1)
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


class Moving(torch.nn.Module):
    """Does to arguments what DDP does on GPUs: lists and tuples arrive as copies."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        from torch.distributed.utils import _to_kwargs

        (moved,), _ = _to_kwargs(arguments, {}, torch.device("cpu"), False)
        return self.module(*moved)


def test_the_record_does_not_hang_on_what_ddp_does_to_arguments(tmp_path):
    plain, moving = trainer(tmp_path, micro_batch=1), trainer(tmp_path, micro_batch=1)
    moving.wrapped = Moving(moving.objective)
    plain.step(1), moving.step(1)
    one, other = (made.recorder.record(0.1) for made in (plain, moving))
    assert (one.terms, one.kept, one.tokens) == (other.terms, other.kept, other.tokens)


def test_a_rehearsal_leaves_nothing_behind(tmp_path):
    made = trainer(tmp_path)
    before = weights(made)
    made.rehearse(ROWS[:3])
    assert all(p.grad is None for p in made.run.student.parameters())
    assert_equal(before, weights(made))
    assert made.recorder.steps == 0


class Prepared(PreparedLoss):
    name = "prepared"

    def prepare(self, tokens):
        return tokens.nll(Held(given.model(seed=2)))

    def per_token_prepared(self, student, teacher, labels, prepared):
        return student.logsumexp(-1) * prepared


@pytest.mark.parametrize("made_up", [False, True])
def test_a_rehearsal_prepares_losses_for_the_rows_it_is_given(tmp_path, made_up):
    made = trainer(tmp_path, terms=[term(Prepared()), term(ForwardKL())])
    made.rehearse(ROWS[:3], made_up=made_up)
    assert all(p.grad is None for p in made.run.student.parameters())


def test_a_step_in_which_every_weight_is_zero_still_runs(tmp_path):
    made = trainer(tmp_path, terms=[term(weight=0.0), term(ForwardKL(), weight=0.0)])
    before = weights(made)
    made.step(1)
    record = made.recorder.record(0.1)
    assert (record.loss, record.terms, record.weights) == (0.0, {}, {"ce": 0.0, "kl": 0.0})
    assert_equal(before, weights(made))


def test_a_record_is_sent_to_other_processes(tmp_path):
    made = trainer(tmp_path, steps=1)
    made.train()
    (record,) = records(made)
    assert pickle.loads(pickle.dumps(record)) == record


def test_a_scaler_scales_the_loss_and_nothing_divides_it():
    """accelerate's own backward divides by ACCELERATE_GRADIENT_ACCUMULATION_STEPS."""
    weight = torch.ones(3, requires_grad=True)
    made = SimpleNamespace(
        run=SimpleNamespace(teacher=None, autocast=nullcontext, processes=1),
        accelerator=SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=8.0)),
        wrapped=lambda *_: (weight.sum(), None),
        values=lambda terms: None,
        watch=None,
    )
    TrainStep.backward(made, SimpleNamespace(batch=None), [], lambda states: None)
    assert weight.grad.tolist() == [8.0] * 3


@pytest.mark.parametrize("step", [2, 4])
def test_a_server_lost_during_an_evaluation_leaves_a_checkpoint_of_that_step(tmp_path, step):
    """The same command evaluates that step again, also where it was the last one."""

    class Gone(Eval):
        def measure(self, run):
            if run.step == step:
                raise Unreachable("nothing answers")
            return super().measure(run)

    options = {"steps": 4, "eval_every": 2, "save_every": 100}
    whole = trainer(tmp_path / "whole", evals=[Eval()], **options)
    whole.train()
    broken = trainer(tmp_path / "broken", evals=[Gone()], **options)
    with pytest.raises(Unreachable):
        broken.train()
    assert broken.checkpoints.has(step)

    asked = Eval()
    resumed = trainer(tmp_path / "broken", evals=[asked], **options)
    assert resumed.resume() and resumed.run.step == step
    resumed.train()
    assert asked.steps == [each for each in (2, 4) if each >= step]
    assert_equal(weights(whole), weights(resumed))
    again = trainer(tmp_path / "broken", evals=[asked], **options)
    assert again.resume()
    assert not again.evaluation_due


def test_a_signal_while_a_server_is_awaited_ends_the_run_as_interrupted(tmp_path):
    class Waiting(Eval):
        def measure(self, run):
            signal.raise_signal(signal.SIGTERM)
            assert stop_requested()
            raise Unreachable("nothing answers, and the run is to end")

    options = {"steps": 4, "eval_every": 2, "save_every": 100}
    with Signals() as signals:
        made = trainer(tmp_path, evals=[Waiting()], signals=signals, **options)
        with pytest.raises(Interrupted, match="after step 2 of 4; a checkpoint is") as ended:
            made.train()
    assert ended.value.exit_code == 128 + signal.SIGTERM
    assert made.checkpoints.has(2) and not stop_requested()
    made.run.step = 0
    waiting = made._saved_if_unreachable(RandomState.capture())
    with pytest.raises(Interrupted, match="in the first step; the same command starts"), waiting:
        raise Unreachable("nothing answers")
