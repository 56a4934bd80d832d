"""The rows of each step where some are generated during training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from kdcore.data.batch import Row, Split
from kdcore.data.sampler import Part, StepRows, StreamedRows, TrainingRows, share
from kdcore.errors import RunError
from kdcore.guard import plugin_errors
from kdcore.models.completions import Completion, Prompt, completions_from, completions_state
from kdcore.rng import RandomState
from kdcore.rollout.layout import WRITTEN, written_rows
from kdcore.rollout.prompts import cutter_of
from kdcore.rollout.statistics import Watch
from kdcore.rollout.writing import write

if TYPE_CHECKING:
    from torch import Tensor

    from kdcore.api.data import Rollout
    from kdcore.training.run_state import RunState

Answers = list[list[Completion]]
"""What was written to each prompt of a step."""


class RolloutRows:
    """The rows of each step; some are generated at its start or up to `every` - 1 steps before.

    Generated completions that may still be trained on are held on every process and are part of
    checkpoints: a retried or resumed step has the same ones.
    """

    def __init__(self, run: RunState, rows: TrainingRows | StreamedRows) -> None:
        """`rows` yields the rows of the whole step, as for a single process."""
        stage = run.recipe
        assert stage.rollout is not None
        self.run, self._rows = run, rows
        self._rollout: Rollout = stage.rollout
        self._options = stage.writing
        self._cutter = cutter_of(stage)
        self.answers: dict[int, Answers] = {}  # by step, of all processes
        self._watch = Watch()
        self._seconds = 0.0  # spent on generation since the last read
        self._cuts_reported = False
        self._check_lengths()

    def _check_lengths(self) -> None:
        lengths = self.split.lengths
        first = self.run.rows("train")[0] if len(lengths) else {}
        if len(lengths) and first.get("labels") is None:
            prompt_tokens, longest = self._options.prompt_tokens, int(lengths.max())
            if prompt_tokens >= longest:
                raise RunError(
                    f"rollout.prompt_tokens = {prompt_tokens}, and the longest document has "
                    f"{longest} tokens; type --set rollout.prompt_tokens={max(1, longest // 2)}"
                )

    @property
    def split(self) -> Split:
        """The split of the rows that are not generated."""
        return self._rows.split

    def ends_epoch(self, step: int) -> bool:
        """Whether a step draws the last row of an epoch."""
        return self._rows.ends_epoch(step)

    def step(self, step: int) -> list[Row]:
        """This process's rows of a step, in order."""
        return self.share_of(step).rows

    def share_of(self, step: int) -> StepRows:
        """The same, with their position in the step."""
        kept, written = self._rows_of_step(step)
        mine = self._mine(len(kept) + len(written))
        return StepRows([*kept, *written][mine.start : mine.stop], mine.start, len(kept + written))

    def parts(self, step: int) -> list[Part]:
        """The same by split, with the index of each part's first row in the step."""
        kept, written = self._rows_of_step(step)
        mine = self._mine(len(kept) + len(written))
        border = min(max(len(kept), mine.start), mine.stop)
        return [
            Part(self.split, kept[mine.start : border], mine.start),
            Part(WRITTEN, written[border - len(kept) : mine.stop - len(kept)], border),
        ]

    def _rows_of_step(self, step: int) -> tuple[list[Row], list[Row]]:
        """The rows of the whole step: those of the data, and generated ones."""
        self.write(step)
        data = self.run.data
        kept = [row for place, row in self._drawn(step) if not self._is_written(step, place)]
        return kept, written_rows(self.answers[step], data.block, data.rows)

    def _mine(self, rows: int) -> range:
        return share(rows, self.run.process, self.run.processes)

    def write(self, step: int) -> None:
        """Generate the completions of a step, and of later steps generated together with it."""
        if step in self.answers:
            return
        began, run, every = time.perf_counter(), self.run, self._options.every
        last = min(((step - 1) // every + 1) * every, max(run.steps, step))
        asked = {n: self._prompts(n) for n in range(step, last + 1)}
        before = RandomState.capture()
        prompts = [prompt for own in asked.values() for prompt in own]
        group = self._options.group(run.data.block)
        answers = iter(write(run, self._rollout, prompts, group))
        before.restore()
        for n, own in asked.items():
            self.answers[n] = [_with_ids(next(answers)) for _ in own]
            with plugin_errors(self._rollout, "generated"):
                self._rollout.generated(run, n, self.written(n))
            self._watch.look(run, n, self.written(n))
        self._seconds += time.perf_counter() - began

    def take_seconds(self) -> float:
        """The seconds spent on generation since the last call."""
        taken, self._seconds = self._seconds, 0.0
        return taken

    def written(self, step: int) -> list[Completion]:
        """The completions of a step; none once they are released."""
        return [one for some in self.answers.get(step, ()) for one in some]

    def forget(self, step: int) -> None:
        """Release the completions of all steps up to this one, which are final."""
        for done in [each for each in self.answers if each <= step]:
            del self.answers[done]

    def _drawn(self, step: int) -> list[tuple[int, Row]]:
        return list(enumerate(self._rows.step(step)))

    def _is_written(self, step: int, place: int) -> bool:
        done = (step - 1) / self.run.steps if self.run.steps else 0.0
        return self._cutter.is_written(step, place, self._options.share_at(done))

    def _prompts(self, step: int) -> list[Prompt]:
        drawn = [each for each in self._drawn(step) if self._is_written(step, each[0])]
        cut = sum(self._cutter.cut(row) for _, row in drawn)
        if cut and not self._cuts_reported:
            self._cuts_reported = True
            self.run.say(
                f"step {step}: {cut} prompts are longer than block - max_new_tokens and keep their "
                f"last {self._cutter.longest} tokens; so do those of later steps"
            )
        return [one for place, row in drawn for one in self._cutter.prompts(row, step, place)]

    def state_dict(self, step: int) -> dict[str, Any]:
        """The row state in a checkpoint after a step, as JSON."""
        return {"data": self._rows.state_dict(step), "watch": self._watch.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        """Restore the result of `state_dict`."""
        if isinstance(state, Mapping) and "watch" in state:
            self._watch = Watch.of(state["watch"])
            state = state["data"]
        self._rows.load_state_dict(state)


class WrittenAhead:
    """Completions that have not been trained on yet, as a part of checkpoints."""

    name: ClassVar[str] = "written"
    component_kind: ClassVar[str] = "rollout"

    def __init__(self, rows: RolloutRows) -> None:
        self._rows = rows

    def state_dict(self) -> dict[str, Tensor | str]:
        """The completions of steps that are not done, by step."""
        found: dict[str, Tensor | str] = {}
        for step, answers in self._rows.answers.items():
            if step > self._rows.run.step:
                flat = completions_state([one for some in answers for one in some])
                found |= {f"{step}/{key}": value for key, value in flat.items()}
                found[f"{step}/counts"] = ",".join(str(len(some)) for some in answers)
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._rows.answers = {}
        for step in sorted({int(key.partition("/")[0]) for key in state}):
            own = {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{step}/")}
            counts = [int(each) for each in own.pop("counts").split(",") if each]
            flat = iter(completions_from(own))
            self._rows.answers[step] = [[next(flat) for _ in range(count)] for count in counts]


def _with_ids(some: Sequence[Completion]) -> list[Completion]:
    """Without empty completions."""
    return [one for one in some if one.ids]
