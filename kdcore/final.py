"""`final/`: the student alone, as `from_pretrained` reads it, with tokenizer and model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.blame import blame
from kdcore.folders import FINAL, move_into_place
from kdcore.hub import progress_bars

if TYPE_CHECKING:
    from kdcore.run import Run


def save_final(run: Run) -> Path:
    """Write the finished student beside, then rename; patches have their last word first."""
    target, beside = run.folder / FINAL, run.folder / f".{FINAL}.partial"
    model = run.student
    for patch in run.recipe.student.patches:
        with blame(patch, "finish"):
            model = patch.finish(model)
    shutil.rmtree(beside, ignore_errors=True)
    with progress_bars(shown=False):
        model.save_pretrained(beside)
    run.tokenizer.save_pretrained(beside)
    (beside / "README.md").write_text(model_card(run))
    move_into_place(beside, target)
    return target


def model_card(run: Run) -> str:
    """What this model is: recipe, objective, versions, last evaluation."""
    versions = json.loads((run.folder / "env.json").read_text())["packages"]
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""---
library_name: transformers
tags: [kdcore, distillation]
---
# {run.recipe.run_name}

Trained with kdcore for {run.steps} steps of {run.batch}
rows, {run.tokens:,} tokens.

## Objective

```
{run.objective}
```

## Recipe

```toml
{(run.folder / "resolved.toml").read_text().strip()}
```

## Versions

{said}
"""
