"""Tasks about the grammar's stories: instruction, input and answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated

from kdcore_sft import Dialogue, Dialogues, dialogue_of
from kdcore_text.records import Record
from pydantic import Field

from kdcore import component
from kdcore_stories.grammar import COLOURS, facts, tell

Task = Mapping[str, str]
"""instruction, input and output."""


@component
class StoryTasks(Dialogues):
    """Small tasks about stories of the grammar: write one, end one, answer a question, change it.

    They are records of instruction, input and output, and become rows like those of the data "sft".
    Task n of a seed does not depend on the number of tasks.
    """

    name = "story-tasks"
    tasks: Annotated[int, Field(ge=1)] = 2400
    validation: Annotated[int, Field(ge=1)] = 200
    seed: int = 0
    template: str | None = "plain"

    def dialogues(self, split: str) -> Iterator[Dialogue]:
        """The tasks of "train", or different ones for "validation"."""
        count = self.tasks if split == "train" else self.validation
        for index in range(count):
            task = ask(random.Random(f"{self.seed} {split} tasks {index}"))
            yield dialogue_of(Record(task, f"task {index + 1}"), self.system)


def ask(rng: random.Random) -> Task:
    """A random task about a newly generated story."""
    story = tell(rng)
    return rng.choice(_KINDS)(rng, story)


def _write(rng: random.Random, story: str) -> Task:
    said = _said(story)
    wish = rng.choice(
        (
            "Write a story about {hero}, a {friend} and a {colour} {thing}.",
            "Tell me how {hero} and a {friend} came by a {colour} {thing}.",
        )
    )
    return {"instruction": wish.format(**said), "output": story}


def _finish(rng: random.Random, story: str) -> Task:
    *before, last = story.split("\n")
    return {"instruction": "How does this story end?", "input": "\n".join(before), "output": last}


def _answer(rng: random.Random, story: str) -> Task:
    question, answer = rng.choice(
        (
            ("What colour is the {thing}?", "The {thing} is {colour}."),
            ("Who is the friend of {hero}?", "The friend of {hero} is the {friend}."),
            ("What do they have?", "They have a {colour} {thing}."),
            ("Who is the story about?", "It is about {hero} and the {friend}."),
        )
    )
    said = _said(story)
    return {
        "instruction": question.format(**said),
        "input": story,
        "output": answer.format(**said),
    }


def _change(rng: random.Random, story: str) -> Task:
    """The first sentence with another colour: most of it is copied."""
    first, colour = story.split("\n")[0], _said(story)["colour"]
    other = rng.choice([each for each in COLOURS if each != colour])
    said = {"instruction": f"Say this with {other} in place of {colour}.", "input": first}
    return {**said, "output": re.sub(rf"\b{colour}\b", other, first)}


def _said(story: str) -> Mapping[str, str]:
    """The first mention of each fact in the story."""
    return {fact: said[0] for fact, said in facts(story).items()}


_KINDS: Sequence[Callable[[random.Random, str], Task]] = (_write, _finish, _answer, _change)
