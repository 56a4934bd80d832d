"""Measurements on held-out rows, and samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdcore import Eval, Loss, Run, RunError, Stage, bos_of, component, generate, hookimpl


@component
class Perplexity(Eval):
    """The student's likelihood of held-out text: nats per token, perplexity, bits per byte.

    Bits per byte can be compared across tokenizers, the other two cannot.
    """

    name = "perplexity"
    always = True

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """`nll`, `perplexity` and `bits_per_byte`."""
        sums = run.evaluate(run.rows("validation"), [])
        nll = sums["nll"] / _tokens(sums)
        return {
            "nll": nll,
            "perplexity": math.exp(nll) if nll < 700 else math.inf,
            "bits_per_byte": sums["nll"] / math.log(2) / max(1, sums["bytes"]),
        }


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

    `agreement` is the share of tokens where both rank the same id first, `kl` the mean of
    KL(teacher || student) in nats.
    """

    name = "agreement"
    needs_teacher = True

    def faults(self, recipe: Stage) -> Iterable[str]:
        """A teacher that knows losses only has no distribution to compare with."""
        if recipe.teacher is not None and not recipe.teacher.gives_logits():
            said = f'the eval "agreement" needs logits, and the teacher {recipe.teacher.name!r}'
            yield f"{said} gives none"

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """`agreement` and `kl`."""
        if run.teacher is None or not run.teacher.gives_logits():
            raise RunError('the eval "agreement" needs a teacher that gives logits')
        sums = run.evaluate(run.rows("validation"), [ForwardKL()], run.teacher)
        tokens = _tokens(sums)
        return {"agreement": sums["agreement"] / tokens, "kl": sums[ForwardKL.name] / tokens}


@component
class Samples(Eval):
    """What the student writes after each prompt, the same random numbers each time.

    Prompts begin a text as the training rows do.
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


def _tokens(sums: Mapping[str, float]) -> float:
    if not sums["tokens"]:
        raise RunError("the validation rows have no token to predict")
    return sums["tokens"]


@hookimpl
def kdcore_evals() -> Sequence[type[Eval]]:
    """The evals `perplexity`, `agreement` and `samples`."""
    return [Perplexity, Agreement, Samples]
