"""An eval that runs tasks of EleutherAI's lm-evaluation-harness on the student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kdcore import Eval, Run, RunError, component, hookimpl

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@component
class LmEval(Eval):
    """Scores of the tasks as `lm_eval` computes them: `lm-eval/TASK/METRIC`.

    `tasks` are names of tasks, groups or tags, as `lm_eval ls tasks` prints them. `folder` contains
    your own task files (YAML). `limit` takes the first so many documents of each task, `fewshot`
    prepends so many examples, `batch` requests run at a time, and `chat` renders each request in
    the student's chat template. Every process runs the whole evaluation.
    """

    name = "lm-eval"
    tasks: Annotated[list[str], Field(min_length=1)]
    folder: Annotated[str | None, Field(description="with task files of your own")] = None
    limit: Annotated[int | None, Field(ge=1, description="documents of each task")] = None
    fewshot: Annotated[int | None, Field(ge=0, description="by default the task's own")] = None
    batch: Annotated[int, Field(ge=1, description="requests that run at a time")] = 8
    chat: Annotated[bool, Field(description="ask in the student's chat template")] = False

    def __post_init__(self) -> None:
        self._manager: TaskManager | None = None

    def faults(self, recipe: object) -> Iterator[str]:
        """Report a missing folder."""
        if self.folder is not None and not Path(self.folder).is_dir():
            yield f"there is no folder {self.folder!r} with task files"

    @hookimpl
    def kdcore_run_start(self) -> None:
        """Look up the tasks, so that an unknown name ends the run before training."""
        self._found()

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """One score per metric of each task, groups included, without standard errors."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        model: Any = run.student
        bars = StringIO()  # kdcore shows its own progress
        with run.autocast(), redirect_stdout(bars), redirect_stderr(bars):
            found = simple_evaluate(
                model=HFLM(
                    pretrained=model,
                    tokenizer=run.tokenizer,
                    backend="causal",
                    batch_size=self.batch,
                ),
                tasks=list(self.tasks),
                task_manager=self._found(),
                num_fewshot=self.fewshot,
                limit=self.limit,
                apply_chat_template=self.chat,
                bootstrap_iters=0,
                log_samples=False,
                random_seed=None,  # leave the generators that training uses alone
                numpy_random_seed=None,
                torch_random_seed=None,
            )
        return dict(sorted(_scores(found["results"])))

    def _found(self) -> TaskManager:
        """Where the tasks are: the folder alone if it has them all, which is faster to read."""
        if self._manager is None:
            self._manager = self._search()
        return self._manager

    def _search(self) -> TaskManager:
        from lm_eval.tasks import TaskManager

        missing: list[str] = list(self.tasks)
        for defaults in [False, True] if self.folder else [True]:
            manager = TaskManager(include_path=self.folder, include_defaults=defaults)
            missing = [each for each in self.tasks if not manager.match_tasks([each])]
            if not missing:
                return manager
        where = f" nor a file in {self.folder}" if self.folder else ""
        raise RunError(
            f"lm_eval has no task {missing[0]!r}{where}; `lm_eval ls tasks` prints what there is"
        )


def _scores(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Each metric of each task; names such as "acc,none" end with the filter of the answers."""
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, answers = key.partition(",")
            if answers and not metric.endswith("_stderr"):
                name = metric if answers == "none" else f"{metric}/{answers}"
                yield f"lm-eval/{task}/{name}", float(value)


@hookimpl
def kdcore_evals() -> Sequence[type[Eval]]:
    """The eval `lm-eval`."""
    return [LmEval]
