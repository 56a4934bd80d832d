"""A stage without data, losses or teacher: for a model that is measured by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kdcore.api import Data, Eval
from kdcore.blame import listed
from kdcore.build import Builder
from kdcore.errors import Fault, RecipeError, UsageError
from kdcore.options import StudentOptions, TrainOptions
from kdcore.overrides import Overrides, add_to_list
from kdcore.rules import needs_teacher
from kdcore.stage import Stage
from kdcore.written import Source, Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kdcore.batch import Rows
    from kdcore.plugins import Host


class NoData(Data):
    """Stands where nobody said what to read."""

    name = "none"

    def texts(self, split: str) -> Iterable[str]:
        """There are none."""
        raise UsageError("no recipe says on which text to measure; give one with --recipe")

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """There are none."""
        raise UsageError("no recipe says on which text to measure; give one with --recipe")


def bare_stage(model: str, evals: Sequence[str], host: Host, sets: Sequence[str] = ()) -> Stage:
    """A stage that has a model as its student and these evals, with their defaults but for `sets`.

    Evals that ask for rows or for a teacher are told that a recipe has to say which.
    """
    # The rate and the step are required options; nothing is trained.
    plain = {"student": {"model": model}, "train": {"lr": 1.0, "steps": 1}}
    root, faults = Written.of(plain, Source("the command line")), list[Fault]()
    for name in evals:
        add_to_list(root, "eval", name, "--use")
    Overrides(root, host, faults, []).apply(sets)
    faults += [
        value.fault(f"without a recipe there is no {key} to set", "give one with --recipe")
        for key, value in root.table.items()
        if key not in ("student", "train", "eval")
    ]
    stage = None if faults else _built(root, host, faults)
    if stage is None:
        raise RecipeError(faults)
    return stage


def _built(root: Written, host: Host, faults: list[Fault]) -> Stage | None:
    builder, data = Builder(host, faults), NoData()
    student = builder.options(StudentOptions, root.table["student"], "[student]")
    train = builder.options(TrainOptions, root.table["train"], "[train]")
    made = [builder.component("eval", table) for table in root.table["eval"].items]
    if student is None or train is None or faults:
        return None
    stage = Stage(
        name="",
        run_name="eval",
        table=root.plain_table(),
        seed=0,
        student=student,
        tokenizer=None,
        tokenizer_data=data,
        data=data,
        teacher=None,
        terms=[],
        selection=None,
        scope="step",
        evals=[one for one in made if isinstance(one, Eval)],
        loggers=[],
        train=train,
    )
    for component, table in builder.places:
        if isinstance(component, Eval) and needs_teacher(component):
            said = f"{component.name!r} needs a teacher, and no recipe says which"
            faults.append(table.fault(said, "give one with --recipe"))
        faults += [table.fault(said) for said in listed(component, "faults", stage)]
    return None if faults else stage
