"""ROUGE-L of the student's answers against reference answers."""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdcore import Eval, Row, Run, RunError, component, generate, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INSTALL = 'pip install "kdcore[rouge]"'
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_SHOWN = 400  # characters of a prompt that are shown, from its end


@component
class Rouge(Eval):
    """ROUGE-L of greedily decoded answers to held-out questions.

    A reference is a trained stretch of a document, its question everything before it. `rows` of
    them are drawn, the same ones each time. `rouge_l` is the mean F1 of ROUGE-L, from 0 to 1,
    computed with the library rouge_score on lower-case words; each Chinese or Japanese character
    counts as a word. `show` answers are kept as text.
    """

    name = "rouge"
    rows: Annotated[int, Field(ge=1)] = 64
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    show: Annotated[int, Field(ge=0)] = 2

    def faults(self, recipe: object) -> Iterator[str]:
        """Report a missing library."""
        if importlib.util.find_spec("rouge_score") is None:
            yield f'the eval "rouge" needs the library rouge_score: {_INSTALL}'

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """`rouge_l`, and `rouge/answer/1`, `rouge/answer/2`, ...: question, answer, reference."""
        asked = self._questions(run)
        answers = self._answers(run, asked)
        references = [_text(run.tokenizer, each.answer) for each in asked]
        scores: dict[str, float | str] = {"rouge_l": rouge_l(answers, references)}
        shown = zip(asked[: self.show], answers, references, strict=False)
        for number, (question, answer, reference) in enumerate(shown, 1):
            prompt = str(run.tokenizer.decode(list(question.prompt)))[-_SHOWN:]
            text = f"{prompt.rstrip()}\n[answer] {answer}\n[reference] {reference}"
            scores[f"rouge/answer/{number}"] = text
        return scores

    def _questions(self, run: Run) -> list[_Question]:
        every = [each for row in run.rows("validation") for each in questions(row)]
        if not every:
            raise RunError(
                'the eval "rouge" needs validation rows with a prompt that is not learned before '
                'each answer, as the data "sft" gives them'
            )
        wanted = min(self.rows, len(every))
        return [every[n] for n in sorted(random.Random(0).sample(range(len(every)), wanted))]

    def _answers(self, run: Run, asked: Sequence[_Question]) -> list[str]:
        """Generated in batches of prompts of similar length; returned in the given order."""
        ends = _ends(asked, run.tokenizer)
        answers = [""] * len(asked)
        by_length = sorted(range(len(asked)), key=lambda n: len(asked[n].prompt))
        for at in range(0, len(asked), run.micro_batch):
            some = by_length[at : at + run.micro_batch]
            prompts = [asked[n].prompt for n in some]
            written = generate(
                run.student,
                run.tokenizer,
                prompts,
                max_new_tokens=self._room(run, prompts),
                temperature=0,
                ends=ends,
            )
            for n, text in zip(some, written, strict=True):
                answers[n] = text
        return answers

    def _room(self, run: Run, prompts: Sequence[Sequence[int]]) -> int:
        """The tokens left for answers: models with learned positions have a fixed maximum."""
        most = getattr(run.student.config, "max_position_embeddings", None) or 1 << 30
        return max(1, min(self.max_new_tokens, most - max(map(len, prompts))))


@dataclass(frozen=True)
class _Question:
    """The ids before an answer, and those of the answer."""

    prompt: Sequence[int]
    answer: Sequence[int]


def questions(row: Row) -> Iterator[_Question]:
    """Every trained stretch of a row, with everything before it in its document."""
    if row.get("labels") is None:
        return
    ids, documents, labels = (list(map(int, row[key])) for key in _KEYS)
    for _, places in groupby(range(len(ids)), key=documents.__getitem__):
        begin, *_ = document = list(places)
        for learned, some in groupby(document, key=lambda n: labels[n] != -100):
            stretch = list(some)
            if learned and stretch[0] > begin:
                yield _Question(ids[begin : stretch[0]], ids[stretch[0] : stretch[-1] + 1])


_KEYS = ("input_ids", "document", "labels")


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _ends(asked: Sequence[_Question], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The special tokens that end answers: a model may have learned another one than its eos."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return {each.answer[-1] for each in asked} & special


def words(text: str) -> list[str]:
    """Words in lower case; each Chinese or Japanese character is one word."""
    return _WORD.findall(text.lower())


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> float:
    """The mean F1 of ROUGE-L, from 0 to 1."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise RunError(f'the eval "rouge" needs the library rouge_score: {_INSTALL}') from None
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = zip(references, answers, strict=True)
    scores = [float(scorer.score(*pair)["rougeL"].fmeasure) for pair in pairs]
    return sum(scores) / len(scores)


@hookimpl
def kdcore_evals() -> Sequence[type[Eval]]:
    """The eval `rouge`."""
    return [Rouge]
