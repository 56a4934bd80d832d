"""`uld`, `gold` and `alm` next to their authors' code on the same tensors and spans.

    python -m venv peers
    peers/bin/pip install -c constraints.txt . trl jax optax flax
    peers/bin/python benchmarks/robustness/span_losses.py CHECKOUT --results

CHECKOUT is a checkout of https://github.com/bminixhofer/tokenkit, which `alm` is compared with. Of
it training/losses.py runs unchanged; its modules for models and data, which the loss does not call,
are empty. `uld` and `gold` are compared with ULDLoss of the TRL that is installed ("observed"
merging). Every trial draws logits, labels, shared ids and spans of several tokens on each side.
Exit code 1 where a value or a gradient differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from kdcore_losses import (
    ApproximateLikelihoodMatching,
    GeneralOnPolicyLogitDistillation,
    UniversalLogitDistillation,
)

from kdcore import PreparedLoss, Tokens

ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 1e-5
_OURS, _THEIRS = 23, 31  # sizes of the vocabularies
Found = tuple[float, np.ndarray]
"""A loss, and its gradient in the student's logits [n, V]."""
ByAuthors = Callable[["Trial"], Found]


class Trial(Tokens):
    """The tokens of one row, as a term sees them; every token after the first is in a span."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        lengths = draw.integers(1, 4, (int(draw.integers(1, 20)), 2))  # tokens of spans, both sides
        self.lengths, spread = lengths, draw.uniform(0.1, 6)
        ours, theirs = lengths.sum(0)
        self.student = draw.normal(0, spread, (ours + 1, _OURS)).astype(np.float32)
        self.teacher = draw.normal(0, spread, (theirs + 1, _THEIRS)).astype(np.float32)
        self.targets, self.others = draw.integers(0, _OURS, ours), draw.integers(0, _THEIRS, theirs)
        self.logits = torch.tensor(self.student[:-1], requires_grad=True)
        shared = int(draw.integers(1, _OURS))
        self.pairs = [draw.permutation(size)[:shared] for size in (_OURS, _THEIRS)]

    def begins(self, side: int) -> np.ndarray:
        """The first token of each span."""
        found: np.ndarray = np.cumsum(self.lengths[:, side]) - self.lengths[:, side]
        return found

    def student_nll(self) -> torch.Tensor:
        """The student's own [n]."""
        return F.cross_entropy(self.logits.detach(), torch.tensor(self.targets), reduction="none")

    def spans(self) -> torch.Tensor:
        """The span of each token [n]."""
        return torch.tensor(np.repeat(np.arange(len(self.lengths)), self.lengths[:, 0]))

    def span_nll(self) -> torch.Tensor:
        """The teacher's at each first token: of its first token, and of the later ones [n, 2]."""
        logits, others = torch.tensor(self.teacher[:-1]), torch.tensor(self.others)
        nll, found = F.cross_entropy(logits, others, reduction="none"), torch.zeros(self.count(), 2)
        each = zip(self.begins(0), self.begins(1), self.lengths[:, 1], strict=True)
        for first, at, theirs in each:
            found[first] = torch.stack([nll[at], nll[at + 1 : at + theirs].sum()])
        return found

    def own(self) -> torch.Tensor:
        """The teacher's logits where a span begins [n, V_teacher]."""
        found = torch.zeros(self.count(), _THEIRS)
        found[self.begins(0)] = torch.tensor(self.teacher[self.begins(1)])
        return found

    def shared_ids(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids of both sides that have one text."""
        ours, theirs = map(torch.tensor, self.pairs)
        return ours, theirs

    def seen(self, loss: object) -> torch.Tensor:
        """All."""
        return torch.ones(len(self.targets), dtype=torch.bool)

    def count(self, loss: object = None) -> Any:
        """All: a number of tokens, as a tensor where a loss asks."""
        return len(self.targets) if loss is None else torch.tensor(float(len(self.targets)))

    def over_step(self, values: torch.Tensor) -> torch.Tensor:
        """One micro-batch."""
        return values

    def score(self, loss: Any, teacher: Any = None, prepared: Any = None) -> torch.Tensor:
        """A loss's values at the student's logits [n]."""
        labels = torch.tensor(self.targets)
        found: torch.Tensor = loss.per_token_prepared(self.logits, self.own(), labels, prepared)
        return found

    def here(self, loss: PreparedLoss) -> Found:
        """kdcore's value and gradient."""
        value = self.score(loss, prepared=loss.prepare(self)).mean()
        (gradient,) = torch.autograd.grad(value, self.logits)
        return float(value.detach()), gradient.numpy()


def tokenkit_losses(checkout: Path) -> ModuleType:
    """tokenkit's module of losses."""
    largest = float(np.finfo(np.float32).max)
    fillers: dict[str, dict[str, Any]] = {
        "tokenkit": {},
        "tokenkit.utils": {"get_large_negative_number": lambda _: -0.7 * largest},
        "tokenkit.baseline_utils": {},
        "tokenkit.models": {},
        "tokenkit.models.param": {},
    }
    for name, members in fillers.items():
        made = ModuleType(name)
        vars(made).update(members)
        sys.modules[name] = made
        above, _, last = name.rpartition(".")
        if above:
            setattr(sys.modules[above], last, made)
    spec = importlib.util.spec_from_file_location(
        "tokenkit_losses", checkout / "tokenkit" / "training" / "losses.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_tokenkit(losses: ModuleType, tau: float, trial: Trial) -> Found:
    """tokenkit's value and gradient, by jax."""
    args = SimpleNamespace(
        alm_diff_fn="binary_ce",
        binarization_temp=tau,
        alm_mode="",
        distill_chunk_sizes=[1],
        distill_main_path_numerator="chunk_count",
        distill_main_path_denominator="chunk_count",
    )

    def value(student: jax.Array) -> jax.Array:
        return losses.compute_alm_loss("unconstrained", args, _given(trial, student))

    found, gradient = jax.value_and_grad(value)(jnp.asarray(trial.student))
    return float(found), np.asarray(gradient)[:-1]


def _given(trial: Trial, student: jax.Array) -> SimpleNamespace:
    logs, others = (jax.nn.log_softmax(each)[None] for each in (student, trial.teacher))
    batch = {
        "input_ids_new": jnp.asarray([[0, *trial.targets]]),
        "input_ids_original": jnp.asarray([[0, *trial.others]]),
        "alignment_matrix_a_unconstrained": _matrix(trial.lengths[:, 0]),
        "alignment_matrix_b_unconstrained": _matrix(trial.lengths[:, 1]),
        "loss_mask_new": jnp.ones((1, len(trial.targets) + 1), bool),
        "loss_mask_original": jnp.ones((1, len(trial.others) + 1), bool),
    }
    return SimpleNamespace(
        **{"batch": batch, "global_batch": batch, "scalar_report": {}},
        **{"student_logprobs": logs, "teacher_logprobs": others},
        **{"student_probs": jnp.exp(logs), "teacher_probs": jnp.exp(others)},
        space_mask_new=jnp.ones(logs.shape[-1]),
        space_mask_teacher=jnp.ones(others.shape[-1]),
    )


def _matrix(lengths: np.ndarray) -> jax.Array:
    """Which span each token belongs to, bool [1, tokens, spans]; the first token is in none."""
    span = np.concatenate([[-1], np.repeat(np.arange(len(lengths)), lengths)])
    return jnp.asarray(span[None, :, None] == np.arange(len(lengths)))


def by_trl(trial: Trial, *, hybrid: bool, beta: float = 0.5, weight: float | None = None) -> Found:
    """The value and gradient of TRL's ULDLoss; `hybrid` is GOLD."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    texts = [f"text {n}" for n in range(len(trial.pairs[0]))]
    names = [dict(zip(texts, map(int, side), strict=True)) for side in trial.pairs]
    ours, theirs = (SimpleNamespace(get_vocab=lambda names=names: names) for names in names)
    options = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=True,
        uld_token_merge_strategy="observed",
        uld_use_hybrid_loss=hybrid,
        uld_hybrid_matched_weight=weight,
        uld_hybrid_unmatched_weight=None if weight is None else 1 - weight,
        beta=beta,
    )
    labels, others = (torch.tensor(each)[None] for each in (trial.targets, trial.others))
    offsets = [torch.tensor(_offsets(trial.lengths[:, side], side))[None] for side in (0, 1)]
    student, teacher = trial.logits[None], torch.tensor(trial.teacher[None, :-1])
    value = ULDLoss(options, ours, theirs)(
        student, teacher, labels, others, labels, others, *offsets
    )
    (gradient,) = torch.autograd.grad(value, trial.logits)
    return float(value.detach()), gradient.numpy()


def _offsets(lengths: np.ndarray, side: int) -> list[tuple[int, int]]:
    """The bytes of each token. A span has six; the sides cut it at bytes that differ."""
    cuts = ({1: (), 2: (2,), 3: (2, 4)}, {1: (), 2: (3,), 3: (1, 3)})[side]
    found: list[tuple[int, int]] = []
    for n, length in enumerate(lengths):
        own = [6 * n + cut for cut in (0, *cuts[int(length)], 6)]
        found += pairwise(own)
    return found


def compared(checkout: Path) -> dict[str, tuple[Callable[[], PreparedLoss], ByAuthors]]:
    """Each loss, new for every trial as it keeps the shared ids, and the same of its authors."""
    losses, gold = tokenkit_losses(checkout), GeneralOnPolicyLogitDistillation
    alm = {
        f"`alm`, tau = {tau:g}": (
            partial(ApproximateLikelihoodMatching, tau=tau),
            partial(by_tokenkit, losses, tau),
        )
        for tau in (1.0, 10.0, 100.0)
    }
    return {
        "`uld`": (UniversalLogitDistillation, partial(by_trl, hybrid=False)),
        "`gold`": (gold, partial(by_trl, hybrid=True)),
        "`gold`, beta = 0": (partial(gold, beta=0.0), partial(by_trl, hybrid=True, beta=0.0)),
        "`gold`, beta = 1, matched_weight = 0.3": (
            partial(gold, beta=1.0, matched_weight=0.3),
            partial(by_trl, hybrid=True, beta=1.0, weight=0.3),
        ),
        **alm,
    }


def main() -> int:
    """The page, and 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--results", action="store_true", help="write a page into results/")
    asked = parser.parse_args()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import trl

    page = [
        f"# Losses over spans next to their authors' code, {date.today()}",
        "",
        f"`python benchmarks/robustness/span_losses.py CHECKOUT`: {asked.trials} draws of logits, "
        "labels, shared ids",
        "and spans of 1 to 3 tokens on each side, in float32. `uld` and `gold` next to ULDLoss of",
        f"TRL {trl.__version__}, `alm` next to tokenkit's `compute_alm_loss` (jax "
        f"{jax.__version__}). Largest differences:",
        "",
        "| loss | value | gradient of a logit |",
        "|---|---|---|",
    ]
    worst = 0.0
    for name, (made, by_authors) in compared(asked.checkout).items():
        apart = np.zeros(2)
        for seed in range(asked.trials):
            one, other = Trial(seed).here(made()), by_authors(Trial(seed))
            apart = np.maximum(apart, [abs(one[0] - other[0]), np.abs(one[1] - other[1]).max()])
        page.append(f"| {name} | {apart[0]:.1e} | {apart[1]:.1e} |")
        worst = max(worst, *apart)
    print("\n".join(page))
    if asked.results:
        path = ROOT / "benchmarks" / "results" / f"{date.today()}-span-losses.md"
        path.write_text("\n".join(page) + "\n", encoding="utf-8")
    return int(worst > _LIMIT)


if __name__ == "__main__":
    sys.exit(main())
