"""The training loop: optimizer steps, with logging, evaluations and checkpoints when due."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from kdcore.errors import Interrupted, RunError, Unreachable, UsageError
from kdcore.objective.gradient_shares import negligible_terms
from kdcore.rng import RandomState
from kdcore.terminal.bars import progress
from kdcore.training.best import Best, best_in_words, is_better, score_of
from kdcore.training.checkpoints.folders import damage
from kdcore.training.checkpoints.saving import Checkpoints, load_weights
from kdcore.training.evaluation import run_evals
from kdcore.training.metrics import MetricsAccumulator
from kdcore.training.micro_batch import OomRetry, kept_micro_batch, micro_batch_state
from kdcore.training.non_finite import NonFiniteHandler
from kdcore.training.step import TrainStep

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager
    from kdcore.training.signals import Signals


_log = logging.getLogger("kdcore")

_SHOWN = 3  # completions logged with a record


@dataclass(eq=False, kw_only=True)
class Trainer(TrainStep):
    """Everything that a run needs to take steps."""

    host: PluginManager
    rate: Callable[[int], float]
    checkpoints: Checkpoints
    signals: Signals

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recorder = MetricsAccumulator(self.run, self.accelerator)
        self.refusals = NonFiniteHandler(self, self.save_if_missing)
        self.oom_retry = OomRetry(self, self._save_alone)
        self.warned: set[str] = set()
        self.evaluation_due = False  # an evaluation was interrupted

    def train(self) -> None:
        """Train from `run.step` to `run.steps`."""
        run, options = self.run, self.run.recipe.train
        if run.step == 0 and (options.eval_first or run.steps == 0):
            self._evaluate()
            if options.keep_best is not None:
                score_of(options, run.scores)  # raises if no eval measures the score
        elif self.evaluation_due:
            self._evaluate()
            self._note_best()
            self.save()
        while run.step < run.steps:
            self.layout.rest()
            self.host.emit("kdcore_step_start", run=run, step=run.step + 1)
            self.step(run.step + 1)
            run.step += 1
            if not self.refusals.deferred:
                self._check()
            saving = self._due(options.save_every)
            if run.step % options.log_every == 0 or run.step == run.steps or saving:
                self._log()
            if self._due(options.eval_every):
                self._evaluate()
                saving = self._note_best() or saving
            if stop := self.signals.agreed(self.accelerator):
                self._stop(stop)
            if saving:
                self.save()

    def step(self, step: int) -> None:
        """One optimizer step on this process's rows."""
        if not all(module.training for module in self.modules):
            self.objective.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        if self.rollouts is not None:
            self.move_schedules(step - 1)
            self.rollouts.write(step)
        before, terms = RandomState.capture(), self.terms_of(step)
        with self._saved_if_unreachable(before):
            shares, choices = self.oom_retry.run(before, lambda: self.gradients(step, terms))
        good = self.refusals.judge(step, self.clip(), shares, before)
        if not self.refusals.blocks:
            self.apply()
        self.base_optimizer.zero_grad(set_to_none=True)
        watched, self.watch = self.watch, None
        squares = None if watched is None else watched.squares
        self.recorder.add(terms, shares, choices, good, squares)
        if self.rollouts is not None:
            self.recorder.add_written(self.rollouts.written(step), self.rollouts.take_seconds())

    @contextmanager
    def _saved_if_unreachable(self, before: RandomState) -> Iterator[None]:
        """If a server becomes unreachable, end the run with a checkpoint."""
        try:
            yield
        except Unreachable:
            before.restore()
            self._save_before_ending()
            if stop := self.signals.take():  # it gave up waiting because of the signal
                raise self._interrupted(stop) from None
            raise

    def _due(self, every: int | Literal["epoch"]) -> bool:
        """Whether something with this interval is due after the last step."""
        step, run = self.run.step, self.run
        if step == run.steps:
            return True
        if every != "epoch":
            return step % every == 0
        return self.rows.ends_epoch(step)

    def _check(self) -> None:
        """Handle non-finite steps; release the completions of the others."""
        self.refusals.check()
        if self.rollouts is not None:
            self.rollouts.forget(self.run.step - 1)

    def _log(self) -> None:
        self._check()
        self.recorder.count()
        if self.recorder.steps:
            record = self.recorder.record(self.rate(self.run.step))
            self.host.emit("kdcore_log", run=self.run, record=record)
            if self.rollouts is not None:
                completions = self.rollouts.written(self.run.step)[:_SHOWN]
                self.host.emit(
                    "kdcore_written", run=self.run, step=self.run.step, completions=completions
                )
            for label, message in negligible_terms(record.gradient, self.run.recipe.terms).items():
                if label not in self.warned and self.run.main:
                    _log.warning(message)
                self.warned.add(label)
            self._warn_of_unknown_tokens(record.teacher.get("aligned", 1.0))

    def _warn_of_unknown_tokens(self, share: float) -> None:
        """Warn once if the teacher covers less than half of the tokens."""
        if share < 0.5 and "aligned" not in self.warned and self.run.main:
            _log.warning(
                "the teacher knows %.0f %% of the trained tokens: at the others, losses that need "
                "it learn nothing; where it has another tokenizer, the losses alm and gold learn "
                "from whole spans of tokens",
                100 * share,
            )
            self.warned.add("aligned")

    def _evaluate(self) -> None:
        self.refusals.check()
        self.recorder.count()
        if self.run.steps:
            self.move_schedules(self.run.step)
        with self.recorder.paused():
            before, self.evaluation_due = RandomState.capture(), True
            self.run.documents = None
            with self._saved_if_unreachable(before):
                scores = self.run.scores = self.oom_retry.run(before, lambda: run_evals(self.run))
            self.evaluation_due = False
            self._keep_documents()
            if scores:
                self.host.emit("kdcore_scores", run=self.run, step=self.run.step, scores=scores)

    def _keep_documents(self) -> None:
        """Keep the values of each held-out document; a full disk does not end the run."""
        run = self.run
        if not run.main or run.documents is None:
            return
        try:
            run.documents.save(run.folder, run.step)
        except OSError as error:
            _log.warning(
                "the losses of documents after step %d are not kept (%s): kdcore compare will use "
                "seeds only there",
                run.step,
                error,
            )

    def _note_best(self) -> bool:
        """Whether the last evaluation is the best so far, the same on every process."""
        run, options = self.run, self.run.recipe.train
        if options.keep_best is None:
            return False
        score = torch.tensor([score_of(options, run.scores)], dtype=torch.float64)
        everyone, _ = self.gather(score.to(run.device))
        found = float(everyone[0])
        if not is_better(found, run.best, options.mode):
            return False
        run.best = Best(run.step, found)
        return True

    def put_back_best(self) -> None:
        """After the last step: restore the weights and scores of the best one, if configured."""
        run, best = self.run, self.run.best
        if best is None:
            return
        path = self.checkpoints.folder / f"step-{best.step}"
        with self.checkpoints.here(path):
            if problem := damage(path):
                raise RunError(
                    f"the checkpoint {path} scored best and should become the final weights, but "
                    f"it is damaged ({problem}); --fresh starts the run again"
                )
            self.layout.rest()
            load_weights(path, self.checkpoints.model)
            run.scores = json.loads((path / "state.json").read_text())["scores"]
        words = best_in_words(run.recipe.train, best)
        run.say(f"step {best.step} had the {words}: its weights are final")

    def _stop(self, signal_number: int) -> None:
        if self.run.step == self.run.steps:
            return
        self.save()
        raise self._interrupted(signal_number)

    def _interrupted(self, signal_number: int) -> Interrupted:
        message = "in the first step; the same command starts again"
        if self.run.step:
            message = (
                f"after step {self.run.step} of {self.run.steps}; a checkpoint is written, and "
            )
            message += "the same command resumes"
        return Interrupted(f"interrupted {message}", signal_number)

    def save_if_missing(self) -> None:
        """A checkpoint of the last step, unless it exists."""
        if self.run.step and not self.checkpoints.has(self.run.step):
            self.save()

    def _save_before_ending(self) -> None:
        """A checkpoint of the last step. Other processes may be waiting inside the next one."""
        if self.run.processes == 1:
            self.save_if_missing()
        else:
            self._save_alone()

    def _save_alone(self) -> None:
        """The same where the other processes are gone, or wait without getting an answer."""
        run = self.run
        if run.step and self.refusals.is_clean():
            sums = self.recorder.state_dict()  # includes the tokens in the run's state
            self.checkpoints.save_alone(run.step, self.state_dict(), sums)

    def state_dict(self) -> dict[str, object]:
        """The part of a checkpoint other than weights, optimizer and per-process state."""
        rows = {"rows": self.rows.state_dict(self.run.step)}
        due = {"evaluation_due": True} if self.evaluation_due else {}
        return self.run.state_dict() | micro_batch_state(self.run) | rows | due

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        run = self.run
        run.load_state_dict(state)
        self.evaluation_due = state.get("evaluation_due", False)
        run.micro_batch = self._kept_micro_batch(state)
        self.objective.chunk = run.chunk
        self.rows.load_state_dict(state.get("rows"))

    def resume(self) -> bool:
        """Restore the newest complete checkpoint; returns whether there was one."""
        newest = self.checkpoints.newest()
        if newest is None:
            self.run.micro_batch = self._kept_micro_batch({})
            return False
        with self.checkpoints.here(newest):
            self.load_state_dict(self.checkpoints.load(newest))
            self.recorder.load_state_dict(self.checkpoints.sums(newest))
        if self.run.step > self.run.steps:
            raise UsageError(
                f"{self.run.folder} is at step {self.run.step} already, and what was accepted "
                f"would end it after step {self.run.steps}: type a longer epochs, steps or tokens"
            )
        return True

    def _kept_micro_batch(self, state: Mapping[str, Any]) -> int:
        """The same on all processes, wherever one was kept."""
        found = kept_micro_batch(self.run, state)
        if self.run.disk.is_shared:
            return found
        return int(self.gather(torch.tensor([found], device=self.run.device))[0].min())

    def save(self) -> None:
        """A checkpoint of the last step."""
        self.refusals.check()
        run = self.run
        with self.recorder.paused():
            sums = self.recorder.state_dict()
            with progress("saving a checkpoint"):
                path = self.checkpoints.save(run.step, self.state_dict(), sums)
        self.host.emit("kdcore_checkpoint", run=run, step=run.step, path=path)
