"""Prompts -> completions: grouped by length, distributed over processes, gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kdcore.errors import PluginError, RunError, is_out_of_memory
from kdcore.guard import describe_component, plugin_errors, wrong_return
from kdcore.models.causal_lm import eval_mode
from kdcore.models.completions import Completion, Prompt

if TYPE_CHECKING:
    from kdcore.api.data import Rollout
    from kdcore.api.run import Run

Answers = list[list[Completion]]
"""The completions of each prompt."""


def write(run: Run, rollout: Rollout, prompts: Sequence[Prompt], group: int) -> Answers:
    """The completions of each prompt, identical on every process and for any number of them.

    Raises RunError if the device has too little memory for a group.
    """
    groups = grouped(prompts, group)
    mine: dict[int, list[Completion]] = {}
    turns = groups[run.process :: run.processes]
    for some in [*turns, *[[]] * (run.most(len(turns)) - len(turns))]:
        asked = [prompts[n] for n in some]
        try:
            with eval_mode(run.student), run.autocast():
                answers = answered(run, rollout, asked)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise _too_little(run, group, str(error)) from None
        mine |= dict(zip(some, answers, strict=True))
    found = _everybody(run, mine)
    return [found[n] for n in range(len(prompts))]


def grouped(prompts: Sequence[Prompt], group: int) -> list[list[int]]:
    """Indices in groups of `group`, longest first. A group depends on nothing but the prompts."""
    order = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n].ids), n))
    return [order[at : at + group] for at in range(0, len(order), group)]


def _everybody(run: Run, mine: dict[int, list[Completion]]) -> dict[int, list[Completion]]:
    if run.processes == 1:
        return mine
    from accelerate.utils import gather_object

    each: list[dict[int, list[Completion]]] = gather_object([mine])
    return {n: some for one in each for n, some in one.items()}


def _too_little(run: Run, group: int, said: str) -> RunError:
    first = said.splitlines()[0]
    if group == 1:
        return RunError(
            f"the device has too little memory to write a single answer ({first}): a smaller "
            "rollout.max_new_tokens needs less"
        )
    return RunError(
        f"the device has too little memory to write {group} answers together ({first}); type "
        f"--set rollout.write_batch={(group + 1) // 2}. The value is part of the experiment: "
        "another value is another run"
    )


def answered(run: Run, rollout: Rollout, prompts: Sequence[Prompt]) -> Answers:
    """The validated completions of a rollout, each with its prompt."""
    with plugin_errors(rollout, "generate"):
        found = rollout.generate(run, prompts)
    if not isinstance(found, Sequence) or len(found) != len(prompts):
        said = f"{len(found)} answers" if isinstance(found, Sequence) else type(found).__name__
        raise wrong_return(rollout, "generate", said, f"one for each of {len(prompts)} prompts")
    several = [[one] if isinstance(one, Completion) else one for one in found]
    return [
        [_checked(run, rollout, one, prompt) for one in some]
        for some, prompt in zip(several, prompts, strict=True)
    ]


def _checked(run: Run, rollout: Rollout, one: object, prompt: Prompt) -> Completion:
    if not isinstance(one, Completion):
        raise wrong_return(rollout, "generate", type(one).__name__, "a Completion")
    of, ids = one.prompt or prompt, [int(each) for each in one.ids]
    if problem := _error(run, one, of, ids):
        raise PluginError(f"{describe_component(rollout)} wrote {problem}")
    logs = None if one.log_probs is None else tuple(map(float, one.log_probs))
    return replace(one, ids=tuple(ids), log_probs=logs, prompt=of)


def _error(run: Run, one: Completion, prompt: Prompt, ids: Sequence[int]) -> str:
    if ids and not 0 <= min(ids) <= max(ids) < run.vocabulary:
        wrong = next(each for each in ids if not 0 <= each < run.vocabulary)
        return f"the id {wrong}, and student and teacher share the ids below {run.vocabulary} only"
    if one.log_probs is not None and len(one.log_probs) != len(ids):
        return f"{len(ids)} ids with {len(one.log_probs)} log-probabilities"
    if len(prompt.ids) + len(ids) > run.data.block:
        return (
            f"{len(ids)} ids to a prompt of {len(prompt.ids)}, and a row holds {run.data.block}: "
            "see rollout.max_new_tokens"
        )
    return ""
