"""Standard output of `kdcore run`: the folders of its runs, or their last scores."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path


def tell_results(folders: Sequence[Path], *, as_json: bool) -> None:
    """One line per distinct folder, the last run's last; or an object with the last scores."""
    each = list(dict.fromkeys(reversed(folders)))[::-1]
    if as_json:
        runs = [{"folder": str(folder), "scores": _scores(folder)} for folder in each]
        print(json.dumps({**(runs[-1] if runs else {}), "runs": runs}, indent=1))
    elif each:
        print("\n".join(map(str, each)))


def _scores(folder: Path) -> dict[str, float | str | None]:
    """The evaluation of the final weights; null for values that JSON cannot represent."""
    from kdcore.runs.folder import CHECKPOINTS
    from kdcore.training.checkpoints.folders import of_final

    path = of_final(folder / CHECKPOINTS)
    state = json.loads((path / "state.json").read_text()) if path else {}
    finite = {
        name: each if isinstance(each, str) or math.isfinite(each) else None
        for name, each in state.get("scores", {}).items()
    }
    return finite
