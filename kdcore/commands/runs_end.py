"""The end of a command with several runs: a table to compare them, and their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.text import Text

from kdcore.api.component import hookimpl


@hookimpl
def kdcore_runs_end(folders: Sequence[Path]) -> None:
    """Compare the runs on standard error, if there are several."""
    if len(folders) < 2:
        return
    from kdcore.commands.comparison.group_tables import comparison_in_full
    from kdcore.commands.output import tell

    tell(*comparison_in_full(folders), *_texts(folders))


def _texts(folders: Sequence[Path]) -> Iterator[Text]:
    """The first text from each run's evaluations, for a few runs."""
    from kdcore.runs.reading.history import History
    from kdcore.runs.reading.metrics import iter_metrics

    if len(folders) > 4:
        return
    for folder in folders:
        texts = History(iter_metrics(folder)).texts
        if texts:
            name, text = next(iter(texts.items()))
            run_name = folder.name.rpartition("-")[0]
            yield Text.assemble("\n", (f"{name} of {run_name}", "bold"), "\n", text)
