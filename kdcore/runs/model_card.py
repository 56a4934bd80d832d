"""The model card of a finished run: what the model is, how it was trained, how to load it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.api.options import is_on_hub
from kdcore.guard import call_checked_list
from kdcore.recipe.describe import symbols_of
from kdcore.redact import redact_paths, redact_secrets
from kdcore.runs.environment import environment_of, recorded
from kdcore.runs.folder import FINAL
from kdcore.training.best import best_in_words

if TYPE_CHECKING:
    from kdcore.training.run_state import RunState


_CARD = """\
---
{front}
---

# {name}

{about}

## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "OWNER/NAME"  # where this card lies: a name on the hub, or a folder
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
```

## Objective

```
{objective}
```

{symbols}

## Evaluations

{scores}

## Recipe

```toml
{recipe}
```

## Versions

{versions}
"""


def model_card(run: RunState) -> str:
    """The card, without secrets, user names and local paths."""
    versions = _versions(run.folder / "env.json")
    stage = run.recipe
    symbols = symbols_of(stage.terms, selects=stage.selection is not None)
    card = _CARD.format(
        front=_front(run).strip(),
        name=stage.run_name,
        about=_about(run),
        objective=run.objective,
        symbols="\n".join(f"- `{symbol}`: {meaning}" for symbol, meaning in symbols),
        scores=_table(run.scores),
        recipe=redact_paths((run.folder / "recipe.toml").read_text("utf-8", "replace").strip()),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )
    return redact_secrets(card)


def _versions(path: Path) -> Mapping[str, str]:
    """The versions that the run started with; if the record is damaged, the current ones."""
    known = (recorded(path) or {}).get("packages")
    return known if isinstance(known, dict) else environment_of()["packages"]


def _about(run: RunState) -> str:
    done = (
        f"{run.steps:,} steps of {run.batch} {run.recipe.train.drawn_unit}, {run.tokens:,} tokens"
    )
    stage = f", as the stage `{run.recipe.name}` of the recipe below" if run.recipe.name else ""
    which = ""
    if run.best is not None:
        best = best_in_words(run.recipe.train, run.best)
        which = f" The weights are those after step {run.best.step:,}: {best}."
    return f"A causal language model that kdcore trained for {done}{stage}.{which}"


def _front(run: RunState) -> str:
    """The YAML header for the hub."""
    from huggingface_hub import ModelCardData

    tags = ["kdcore", *(["distillation"] if run.teacher is not None else [])]
    base = _base(run.recipe.student.model)
    datasets = list(dict.fromkeys(call_checked_list(run.recipe.data, "names_on_hub")))
    data = ModelCardData(
        library_name="peft" if hasattr(run.student, "peft_config") else "transformers",
        pipeline_tag="text-generation",
        tags=tags,
        base_model=base,
        datasets=datasets or None,
    )
    return data.to_yaml()


def _base(model: str | None) -> str | None:
    """The hub model that a student started as, possibly through another run."""
    if model is None or is_on_hub(model):
        return model
    card = Path(model) / "README.md"
    if Path(model).name != FINAL or not card.is_file():
        return None
    from huggingface_hub import ModelCard

    found = ModelCard.load(card).data.get("base_model")
    return found if isinstance(found, str) else None


def _table(scores: Mapping[str, float | str]) -> str:
    """The results of the last evaluation."""
    numbers = {name: each for name, each in scores.items() if not isinstance(each, str)}
    if not numbers:
        return "None were made."
    rows = [f"| {name} | {_said(each)} |" for name, each in numbers.items()]
    return "\n".join(
        ["On held-out text, with these weights:", "", "| eval | |", "|---|---|", *rows]
    )


def _said(number: float) -> str:
    return f"{number:.6g}" if math.isfinite(number) else str(number)
