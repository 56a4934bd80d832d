"""The verb `kdcore optuna RECIPE --search KEY=...`: hyperparameter search with Optuna."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import kdcore

if TYPE_CHECKING:
    from optuna import Study, Trial


@dataclass(frozen=True)
class Searched:
    """A key of the recipe and its search space: a range, or a list of values."""

    key: str
    low: float | int | None
    high: float | int | None
    log: bool
    choices: Sequence[Any]

    @classmethod
    def parse(cls, text: str) -> Searched:
        """Parse KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C."""
        key, given, values = text.partition("=")
        span, colon, scale = values.partition(":")
        low, dots, high = span.partition("..")
        if not (key and given and values) or (dots and colon and scale != "log"):
            raise typer.BadParameter(f"{text!r}: type KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B")
        if not dots:
            return cls(key, None, None, False, [_value(each) for each in values.split(",")])
        ends = [_value(low), _value(high)]
        if not all(isinstance(end, int | float) for end in ends) or not ends[0] < ends[1]:
            raise typer.BadParameter(f"{text!r}: a range goes from a number to a larger one")
        if scale and ends[0] <= 0:
            raise typer.BadParameter(f"{text!r}: a logarithmic range begins above 0")
        return cls(key, *ends, bool(scale), ())

    def ask(self, trial: Trial) -> Any:
        """The value for this trial."""
        if self.low is None or self.high is None:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def optuna(
    recipe: Annotated[str, typer.Argument(help="A path, or the name of a shipped recipe.")],
    search: Annotated[
        list[str], typer.Option(metavar="K=...", help="LOW..HIGH, LOW..HIGH:log or A,B,C.")
    ],
    trials: Annotated[int, typer.Option(min=1, help="Runs in all, those done included.")] = 20,
    metric: Annotated[str, typer.Option(help="A score of the evals.")] = "nll",
    maximize: Annotated[bool, typer.Option("--maximize", help="Larger is better.")] = False,
    seed: Annotated[int, typer.Option(help="Of the search; runs keep the recipe's.")] = 0,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="K=V")] = None,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Search for the options with the best score. Rerun the same command to resume."""
    searched = [Searched.parse(each) for each in search]
    name = f"{Path(recipe).stem}.optuna.jsonl"
    study = _study(out / name, recipe, maximize, seed)

    def run(trial: Trial) -> float:
        values = {each.key: each.ask(trial) for each in searched}
        done = kdcore.run(recipe, sets=[*(sets or ()), *_arguments(values)], out=out)
        trial.set_user_attr("run", done.folder.name)
        return _score(done.scores, metric)

    _resume(study, trials, run)
    best = study.best_trial
    typer.echo(f"best of {len(_complete(study))}: {metric} {best.value:.6g} in {out}/{_run(best)}")
    for line in _arguments(best.params):
        typer.echo(f"  --set {line}")


def _study(file: Path, recipe: str, maximize: bool, seed: int) -> Study:
    import optuna as library
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    library.logging.set_verbosity(library.logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    return library.create_study(
        storage=JournalStorage(JournalFileBackend(str(file))),
        study_name=recipe,
        load_if_exists=True,
        sampler=library.samplers.TPESampler(seed=seed),
        direction="maximize" if maximize else "minimize",
    )


def _resume(study: Study, trials: int, run: Callable[[Trial], float]) -> None:
    """Run the missing trials, starting with those that an interrupted command left unfinished."""
    from optuna.trial import TrialState

    for each in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(each.number, state=TrialState.FAIL)
        study.enqueue_trial(each.params, skip_if_exists=False)
    study.optimize(run, n_trials=max(0, trials - len(_complete(study))))


def _complete(study: Study) -> Sequence[Any]:
    from optuna.trial import TrialState

    return study.get_trials(states=[TrialState.COMPLETE])


def _score(scores: Mapping[str, Any], metric: str) -> float:
    name = metric.removeprefix("eval/")
    if not isinstance(scores.get(name), int | float):
        raise kdcore.UsageError(f"no score is called {name!r}; there are: {', '.join(scores)}")
    return float(scores[name])


def _run(trial: Any) -> str:
    return str(trial.user_attrs["run"])


def _value(text: str) -> Any:
    """A number, true or false, else the word itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _arguments(values: Mapping[str, Any]) -> list[str]:
    """In the form of `--set`."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    ]
