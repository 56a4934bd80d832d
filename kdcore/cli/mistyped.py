"""What to type instead of an option that a command does not have."""

from __future__ import annotations

from typing import Any


def meant(error: Any) -> str:
    """`--learning_rate 1` is `--set train.lr=1`; "" for other errors and commands without --set.

    `error` is one of typer's exceptions, of which only NoSuchOption has an `option_name`.
    """
    name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    parameters = context.command.params if context is not None else []
    if name is None or all("--set" not in each.opts for each in parameters):
        return ""
    from kdcore.api.options import option_types
    from kdcore.api.train_options import TrainOptions
    from kdcore.recipe.other_words import ours

    word = name.lstrip("-").replace("-", "_")
    key = word if word in option_types(TrainOptions) else (ours(word) or ("",))[0]
    change = f"--set train.{key}=VALUE" if key else "--set K=V, such as --set train.lr=1e-4"
    return f"a key of the recipe is changed by {change}"
