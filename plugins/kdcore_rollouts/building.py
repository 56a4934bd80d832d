"""Generate answers ahead of a run, and export them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcore import Prompt, Rollout, Run, Stage, UsageError, load_teacher
from kdcore_rollouts.kept import Answers, KeepsAnswers

_AT_ONCE = 64  # prompts between two progress reports


def keeping_in(stage: Stage) -> list[Rollout]:
    """The writers of a stage that store their answers, including nested ones."""
    writers = [one for one in stage.components() if isinstance(one, Rollout)]
    return [one for one in writers if hasattr(one, "kept") and getattr(one, "keep", True)]


@dataclass(frozen=True)
class Writing:
    """One writer's answers to the prompts of the training data."""

    run: Run
    writer: Rollout
    prompts: Sequence[Prompt]

    @property
    def label(self) -> str:
        """The name of the answering model."""
        return str(self.kept.about["teacher"])

    @property
    def kept(self) -> Answers:
        """The answers stored so far."""
        return self._keeps.kept(self.run)

    def build(self, done: Callable[[int], None]) -> int:
        """Generate the missing answers and report progress in prompts; return how many were new."""
        before = len(self.kept)
        missing = [one for one in self.prompts if self._is_missing(one)]
        done(len(self.prompts) - len(missing))
        if missing and self.writer.needs_teacher() and self.run.teacher is not None:
            load_teacher(self.run, self.run.teacher)
        if missing:
            load_teacher(self.run, self.writer)
        group = min(_AT_ONCE, self.run.recipe.writing.group(self.run.data.block))
        for at in range(0, len(missing), group):
            some = missing[at : at + group]
            self.writer.generate(self.run, some)
            done(len(some))
        return len(self.kept) - before

    def _is_missing(self, prompt: Prompt) -> bool:
        return any(key not in self.kept for key in self._keeps.keys(prompt))

    @property
    def _keeps(self) -> KeepsAnswers:
        return self.writer  # type: ignore[return-value]


def writings(run: Run) -> Iterator[Writing]:
    """The answers of a stage's writers to all of its training data."""
    keeping = keeping_in(run.recipe)
    if keeping and run.data.streams:
        raise UsageError(
            f"data {run.data.name!r} is streamed, so its prompts are not known in advance: the run "
            "itself keeps answers as they are written"
        )
    for writer in keeping:
        yield Writing(run, writer, run.prompts())


def export(answers: Answers, path: Path) -> int:
    """Write the answers as dialogues that `sft` reads, one JSON line each; return their number.

    Raises UsageError if the dialogues were not kept, or the file exists.
    """
    written = 0
    if path.exists():
        raise UsageError(f"{path} exists already: give another name")
    with path.open("x", encoding="utf-8") as file:
        for each in answers:
            if each.left_out or not each.finished:
                continue
            if each.messages is None:
                path.unlink()
                raise UsageError(
                    f"{answers.folder.name} holds answers without their dialogues: they were "
                    'written without keep_columns = ["messages"] in [data]'
                )
            file.write(json.dumps(_dialogue(each.messages, each.text), ensure_ascii=False) + "\n")
            written += 1
    return written


def _dialogue(messages: Sequence[Mapping[str, Any]], text: str) -> dict[str, object]:
    """Only the last answer is trained: earlier ones are the data's own."""
    before = [
        {**each, "train": False} if each["role"] == "assistant" else dict(each) for each in messages
    ]
    return {"messages": [*before, {"role": "assistant", "content": text}]}
