"""The options of `kdcore show` for tokens and rows, and the resulting request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from kdcore.errors import UsageError

Split = Literal["train", "validation"]

OfTokens = Annotated[
    bool, typer.Option("--tokens", help="Rows of a training step of RUN, token by token.")
]
OfData = Annotated[
    bool, typer.Option("--data", help="Rows of RECIPE's data, as the student will see them.")
]
Rows = Annotated[
    int | None, typer.Option(min=1, help="Number of rows; by default 4, with --data 3.")
]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows as an HTML page.")]
Steps = Annotated[
    list[int] | None,
    typer.Option(
        "--step",
        min=0,
        metavar="N",
        help="--tokens: by this step's checkpoint; twice compares two.",
    ),
]
OfStep = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="--tokens: rows of this step; by default of the next one."
    ),
]
Scores = Annotated[
    bool, typer.Option("--scores", help="--tokens: add each token's score and loss.")
]
Rollouts = Annotated[
    bool, typer.Option("--rollouts", help="--data: answers of its rollout, before any training.")
]
OfStage = Annotated[str | None, typer.Option(metavar="NAME", help="--data: only this stage.")]
OfSplit = Annotated[Split, typer.Option(help="--data: the split.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="Change a key of the recipe.")
]


@dataclass(frozen=True, kw_only=True)
class Looking:
    """The request."""

    names: Sequence[str] = ()
    out: Path = Path("runs")
    as_json: bool = False
    rows: int | None = None
    html: Path | None = None
    steps: Sequence[int] = ()
    of_step: int | None = None
    scores: bool = False
    stage: str | None = None
    split: Split = "train"
    rollouts: bool = False
    sets: Sequence[str] = ()
    plugins: Sequence[str] = ()

    def refuse(self, *names: str, without: str) -> None:
        """Raise UsageError for options without effect."""
        for name in names:
            if getattr(self, name) not in (None, (), False, "train"):
                option = {"steps": "step", "sets": "set", "plugins": "p"}.get(name, name)
                dashes = "-" if len(option) == 1 else "--"
                raise UsageError(f"{dashes}{option.replace('_', '-')} needs {without}")
