"""Children's stories from a grammar: unlimited, small, and checkable.

Each story has a hero, a friend, a place, and a thing of some colour, and refers back to them. A
model therefore has to learn more than word order, and whether it has can be checked exactly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from kdcore import Data, Eval, Run, bos_of, component, generate, hookimpl
from kdcore_stories.grammar import facts, keeps_facts, tell
from kdcore_stories.tasks import StoryTasks

__all__ = ["Facts", "Stories", "StoryTasks", "facts", "keeps_facts", "tell"]


@component
class Stories(Data):
    """Stories from a grammar. Story n of a seed does not depend on the number of stories."""

    name = "stories"
    stories: Annotated[int, Field(ge=1)] = 2400
    validation: Annotated[int, Field(ge=1)] = 200
    seed: int = 0

    def texts(self, split: str) -> Iterator[str]:
        """The stories of "train", or different ones for "validation"."""
        count = self.stories if split == "train" else self.validation
        for index in range(count):
            yield tell(random.Random(f"{self.seed} {split} {index}"))


@component
class Facts(Eval):
    """The share of the student's stories that keep their facts, from 0 to 1, and one story as text.

    The student continues first sentences that are in neither split, so memorised stories do not
    help.
    """

    name = "facts"
    samples: Annotated[int, Field(ge=1)] = 100
    temperature: Annotated[float, Field(ge=0)] = 0.8
    max_new_tokens: Annotated[int, Field(ge=1)] = 160
    seed: int = 0

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """Let the student continue first sentences, and check the resulting stories."""
        rngs = (random.Random(f"{self.seed} facts {index}") for index in range(self.samples))
        prompts = [tell(rng).split("\n")[0] for rng in rngs]
        endings = generate(
            run.student,
            run.tokenizer,
            prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            bos=bos_of(run.data, run.tokenizer),
        )
        stories = [prompt + ending for prompt, ending in zip(prompts, endings, strict=True)]
        return {"facts": sum(map(keeps_facts, stories)) / len(stories), "story": stories[0]}


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data `stories` and `story-tasks`."""
    return [Stories, StoryTasks]


@hookimpl
def kdcore_evals() -> Sequence[type[Eval]]:
    """The eval `facts`."""
    return [Facts]
