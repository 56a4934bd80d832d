"""Evaluations on held-out rows, and samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdcore import Eval, Loss, Run, RunError, Stage, bos_of, component, generate, hookimpl

_OF_TEACHER = "teacher_nll"


@component
class Perplexity(Eval):
    """The student's likelihood of held-out text: nats per token, perplexity, bits per byte.

    Only bits per byte are comparable across tokenizers. `teacher_nll` is the teacher's likelihood
    of the same rows, measured once per run if the teacher gives the logits of all ids. With `by`, a
    column of the documents, the student's scores are also reported for each value of that column.
    """

    name = "perplexity"
    always = True
    by: Annotated[
        str | None, Field(description='a column, such as "domain": nll/math, nll/code, ...')
    ] = None

    def reads_columns(self) -> Sequence[Mapping[str, list[str]]]:
        """The column of `by`, with any values."""
        return [] if self.by is None else [{self.by: []}]

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """`nll`, `perplexity`, `bits_per_byte`, and if available `teacher_nll`."""
        sums = _sums(run, self)
        _tokens(sums)
        scores: dict[str, float | str] = {**_scores(sums)}
        found = [key.partition("/")[2] for key in sums if key.startswith("tokens/")]
        if self.by is not None and not found:
            raise RunError(f"no validation document has the column {self.by!r} to group by")
        for value in found:
            if sums[f"tokens/{value}"]:
                scores |= _scores(sums, f"/{value}")
        if _OF_TEACHER in sums:
            scores[_OF_TEACHER] = sums[_OF_TEACHER] / _known(sums)
        elif _OF_TEACHER in run.scores:
            scores[_OF_TEACHER] = run.scores[_OF_TEACHER]
        return scores


def _scores(sums: Mapping[str, float], of: str = "") -> dict[str, float]:
    """The student's scores, over all tokens or those of one value of the column."""
    nll = sums[f"nll{of}"] / sums[f"tokens{of}"]
    return {
        f"nll{of}": nll,
        f"perplexity{of}": math.exp(nll) if nll < 700 else math.inf,
        f"bits_per_byte{of}": sums[f"nll{of}"] / math.log(2) / max(1, sums[f"bytes{of}"]),
    }


@component
class TeacherLikelihood(Loss):
    """The teacher's negative log-likelihood of the label."""

    name = _OF_TEACHER

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """In nats [n]."""
        assert teacher is not None
        return F.cross_entropy(teacher, labels, reduction="none")


@component
class ForwardKL(Loss):
    """KL(teacher || student) at temperature 1."""

    name = "kl"

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """In nats [n]."""
        assert teacher is not None
        q, p = student.log_softmax(-1), teacher.log_softmax(-1)
        return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


@component
class Agreement(Eval):
    """How close the student is to its teacher on held-out text.

    `agreement` is the share of tokens where both have the same top id, `kl` the mean of
    KL(teacher || student) in nats.
    """

    name = "agreement"
    needs_teacher = True

    def __post_init__(self) -> None:
        self._left: _Left | None = None

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject a teacher that gives losses only: it has no distribution to compare with."""
        if recipe.teacher is not None and not recipe.teacher.gives_logits():
            said = f'the eval "agreement" needs logits, and the teacher {recipe.teacher.name!r}'
            yield f"{said} gives none"

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """`agreement` and `kl`."""
        if run.teacher is None or not run.teacher.gives_logits():
            raise RunError('the eval "agreement" needs a teacher that gives logits')
        sums = _sums(run, self)
        known = _known(sums)
        return {"agreement": sums["agreement"] / known, "kl": sums[ForwardKL.name] / known}


@component
class Samples(Eval):
    """The student's continuation of each prompt, with the same random numbers each time.

    Prompts begin a text like training rows do, with the same special tokens.
    """

    name = "samples"
    prompts: Annotated[list[str], Field(min_length=1)] = field(
        default_factory=lambda: ["Once upon a time"]
    )
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(ge=0, description="0: the likeliest token")] = 0.8
    top_k: Annotated[int, Field(ge=0, description="0: all")] = 0
    top_p: Annotated[float, Field(gt=0, le=1, description="1.0: all")] = 1.0
    seed: Annotated[int, Field(description="the same at every evaluation")] = 0

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """`sample/1`, `sample/2`, ...: prompt and continuation."""
        texts = generate(
            run.student,
            run.tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            bos=bos_of(run.data, run.tokenizer),
        )
        pairs = zip(self.prompts, texts, strict=True)
        return {f"sample/{n}": prompt + text for n, (prompt, text) in enumerate(pairs, 1)}


@dataclass(frozen=True)
class _Left:
    """Results of a pass over the held-out rows, kept for the second eval that needs them."""

    step: int
    eval: Eval
    sums: Mapping[str, float]


def _sums(run: Run, one: Eval) -> Mapping[str, float]:
    """Perplexity and agreement share one pass, made by whichever comes first."""
    rows, evals = run.rows("validation"), run.recipe.evals
    agreement = next((each for each in evals if isinstance(each, Agreement)), None)
    perplexity = next((each for each in evals if isinstance(each, Perplexity)), None)
    pair = agreement is not None and perplexity is not None and one in (agreement, perplexity)
    if not pair or agreement is None or perplexity is None:
        losses = [ForwardKL()] if isinstance(one, Agreement) else _of_teacher(run)
        keep = isinstance(one, Perplexity)
        teacher = run.teacher if losses else None
        return run.evaluate(rows, losses, teacher, by=_by(one), keep_documents=keep)
    left, agreement._left = agreement._left, None
    if left is not None and (left.step, left.eval) == (run.step, one):
        return left.sums
    losses = [ForwardKL(), *_of_teacher(run)]
    sums = run.evaluate(rows, losses, run.teacher, by=_by(perplexity), keep_documents=True)
    other = perplexity if one is agreement else agreement
    agreement._left = _Left(run.step, other, sums)
    return sums


def _by(one: Eval) -> str | None:
    """The column that an eval groups by, if any."""
    return one.by if isinstance(one, Perplexity) else None


def _of_teacher(run: Run) -> list[Loss]:
    """The teacher's own likelihood as a loss, if it is to be measured."""
    teacher = run.teacher
    if teacher is None or not run.reads_teacher or _OF_TEACHER in run.scores:
        return []
    able = teacher.gives_logits() and teacher.ids_known() is None
    return [TeacherLikelihood()] if able else []


def _tokens(sums: Mapping[str, float]) -> float:
    if not sums["tokens"]:
        raise RunError("the validation rows have no token to predict")
    return sums["tokens"]


def _known(sums: Mapping[str, float]) -> float:
    """The tokens that the teacher knows; with another tokenizer these may not be all."""
    return max(1.0, sums.get("known", _tokens(sums)))


@hookimpl
def kdcore_evals() -> Sequence[type[Eval]]:
    """The evals `perplexity`, `agreement` and `samples`."""
    return [Perplexity, Agreement, Samples]
