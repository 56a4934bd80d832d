"""Rules between `[rollout]` and the rest of a recipe, as far as they can be checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kdcore.api.data import Data, Rollout
from kdcore.api.loss import Term
from kdcore.api.options import iter_components
from kdcore.api.teacher import Teacher
from kdcore.api.tokens import PreparedLoss
from kdcore.api.train_options import RolloutOptions
from kdcore.data.where import FROM_DATA, SOURCE
from kdcore.errors import Diagnostic
from kdcore.guard import call_checked
from kdcore.recipe.build import Builder
from kdcore.recipe.node import Node


class Assembly(Protocol):
    """A stage being assembled, as these rules see it."""

    tables: dict[str, Node]
    data: Data | None
    teacher: Teacher | None
    rollout: Rollout | None
    writing: RolloutOptions | None
    terms: list[Term]
    builder: Builder


def rollout_errors(stage: Assembly) -> Iterator[Diagnostic]:
    """All broken rules."""
    table = stage.tables.get("rollout")
    if table is None:
        return
    if "tokens" in (train := stage.tables["train"].table if "train" in stage.tables else {}):
        said = "[train] tokens counts the data's tokens, and with [rollout] others are trained"
        yield train["tokens"].error(said, "give steps or epochs, which count the rows drawn")
    if stage.data is not None:
        yield from _rows(stage, table, stage.data)
    if stage.writing is not None:
        yield from _data_that_is_left(stage, stage.writing)
    if stage.rollout is not None:
        yield from _lengths(stage, table, stage.rollout)
        yield from _likeliest(stage, stage.rollout)
    if stage.teacher is not None and call_checked(stage.teacher, "is_estimate", of=bool):
        said = f"the teacher {stage.teacher.name!r} knows what was drawn for the data's rows only"
        hint = "with [rollout] it also has to read what was just written: name the teacher itself"
        yield stage.tables["teacher"].error(said, hint)


def _rows(stage: Assembly, table: Node, data: Data) -> Iterator[Diagnostic]:
    if data.rows == "chunk":
        said = 'rows = "chunk" cuts through documents, and [rollout] begins from each one'
        yield _at(stage, "data", "rows").error(said, 'take rows = "pack" or "one"')
    if not data.eos:
        said = "eos = false: no document ends, so the student would never end what it writes"
        yield _at(stage, "data", "eos").error(said, "leave eos out, or [rollout]")


def _lengths(stage: Assembly, table: Node, rollout: Rollout) -> Iterator[Diagnostic]:
    if stage.data is None:
        return
    block, places = stage.data.block, {id(made): at for made, at in stage.builder.places}
    for one in iter_components(rollout):
        if isinstance(one, Rollout) and one.max_new_tokens >= block:
            at = places[id(one)]
            said = f"max_new_tokens = {one.max_new_tokens} leaves no room for a prompt in rows of "
            yield at.table.get("max_new_tokens", at).error(
                f"{said}{block} tokens", "take fewer, or a larger block in [data]"
            )
    given = table.table.get("prompt_tokens")
    if given is not None and stage.writing is not None:
        both = stage.writing.prompt_tokens + rollout.max_new_tokens
        if rollout.max_new_tokens < block < both:
            said = f"prompt_tokens and max_new_tokens are {both} together, and block is {block}"
            yield given.error(said, "take fewer, or a larger block in [data]")


def _data_that_is_left(stage: Assembly, writing: RolloutOptions) -> Iterator[Diagnostic]:
    """Terms on rows of data, while every row is generated."""
    places = {id(made): at for made, at in stage.builder.places}
    for term in stage.terms:
        if writing.share == 1 and (term.where or {}).get(SOURCE) == FROM_DATA:
            at = places[id(term.loss)]
            said = f"the loss {term.label!r} asks for rows of data, and with share = 1 none is left"
            yield at.table.get("where", at).error(said, "take a smaller share in [rollout]")


def _likeliest(stage: Assembly, rollout: Rollout) -> Iterator[Diagnostic]:
    """Policy gradients on tokens that were not sampled."""
    places = {id(made): at for made, at in stage.builder.places}
    losses = [t.loss for t in stage.terms if isinstance(t.loss, PreparedLoss)]
    users = [loss.name for loss in losses if loss.needs_samples]
    for one in iter_components(rollout) if users else ():
        if isinstance(one, Rollout) and one.temperature == 0:
            said = f"temperature = 0 draws nothing, and the loss {users[0]!r} is right on average "
            yield (
                places[id(one)]
                .table["temperature"]
                .error(
                    said + "over tokens that are drawn from the student only",
                    "take temperature = 1",
                )
            )


def _at(stage: Assembly, table: str, key: str) -> Node:
    """The place of the option, or of its table."""
    node = stage.tables[table]
    return node.table.get(key, node)
