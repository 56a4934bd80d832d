"""What a step of each GPU recipe should take on named cards, predicted: nothing was measured.

    python benchmarks/roofline.py                  all cards
    python benchmarks/roofline.py H100 T4          some of them

From the operations of the matrix products, the bytes that optimizer, casts, activations and logits
move, and the kernels that the host launches. A step takes what is longest of the host's time and
the GPU's; memory decides how many rows run at once. Answers are generated before it, a token of
all prompts at a time. The assumptions are the constants below; a
GPU's measurement (`make gpu`) replaces them.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from recipe_shapes import MODELS, OTHERS, STAGES, Model, Stage

__all__ = ["CARDS", "MODELS", "OTHERS", "STAGES", "Card", "Model", "Stage", "card_of", "predict"]

LAUNCH = 5e-6  # seconds of host time a kernel
OF_PEAK = 0.55  # what large products reach
OF_BANDWIDTH = 0.85
ADAMW = 28  # bytes a trained parameter: reads weight, gradient and two moments, writes all but one
CLIP = 12  # the gradient's norm, and the gradient scaled
CASTS = 12  # a micro-batch: weights to half, gradients from half and onto those that are there
LOGIT_PASSES = {"ce": 6, "kl": 14, "scores": 3}  # over float32 logits: compiled losses, casts
KEPT = 34, 6  # bytes of activations a token and layer: so many times width and inner width
KERNELS = {"llama": (143, 39), "qwen2": (152, 39), "gpt2": (143, 39)}  # trained; half, forward
OUTSIDE = 65  # kernels of a micro-batch in addition to the layers
DRAWING = 20  # kernels that draw a token of each answer
WEIGHTS = {"student": 8, "teacher": 2}  # bytes a parameter that writing a token reads, and casts
LIBRARIES = 0.6e9  # bytes of CUDA and its kernels
CHUNK = 2**29 * 4  # bytes: copies of a chunk's logits


@dataclass(frozen=True)
class Card:
    """What its maker says of it."""

    name: str
    flops: float  # a second: dense products of halves with float32 sums
    bandwidth: float  # bytes a second
    memory: float  # bytes


CARDS = [
    Card("T4", 65e12, 320e9, 16e9),
    Card("A10G", 70e12, 600e9, 24e9),
    Card("RTX 4090", 165e12, 1008e9, 24e9),
    Card("A100", 312e12, 2039e9, 80e9),
    Card("H100", 989e12, 3350e9, 80e9),
    Card("H200", 989e12, 4800e9, 141e9),
]


def card_of(name: str) -> Card | None:
    """The card that a driver's name for it means, such as "NVIDIA H100 80GB HBM3"."""
    found = [card for card in CARDS if card.name.replace(" ", "") in name.replace(" ", "")]
    return found[0] if found else None


def operations(stage: Stage, tokens: float, trained: float) -> float:
    """Floating-point operations of a step over so many tokens, of which the losses see `trained`.

    Those that the experiment needs: nothing recomputed, and a cached teacher is free.
    """
    student, teachers = stage.models
    passes = 4 if stage.lora else 6  # frozen weights have no gradient
    found = passes * (student.trunk * tokens + student.head * trained)
    found += 2 * student.trunk * tokens * stage.checkpointing
    found += 6 * stage.projections * trained
    found += 6 * student.layers * student.hidden * tokens * stage.context
    found += 2 * student.head * tokens if stage.scored else 0
    for teacher in teachers:
        read, seen = tokens * stage.read, trained * stage.read
        found += 2 * (teacher.trunk * read + teacher.head * seen)
        found += 2 * teacher.layers * teacher.hidden * read * stage.context
    return found


def weights(stage: Stage) -> float:
    """Bytes that weights, gradients and the optimizer take whatever the batch."""
    student, teachers = stage.models
    own = student.parameters * (2 if stage.lora else 16)
    here = [] if stage.adapter_off else teachers
    # A teacher that writes without being compared with.
    here += [MODELS[name] for name in stage.writers if name not in (stage.student, *stage.teachers)]
    return LIBRARIES + own + 2 * sum(teacher.parameters for teacher in here)


def rows_at_once(stage: Stage, card: Card) -> int:
    """The largest of the batch, its half, its quarter, ... that fits; 0 where a row does not."""
    student, _ = stage.models
    width, inner = (
        times * n for times, n in zip(KEPT, (student.hidden, student.inner), strict=True)
    )
    kept = 2 * student.hidden * student.layers if stage.checkpointing else 0
    of_row = stage.tokens * (kept or student.layers * (width + inner))
    room, rows = card.memory - weights(stage) - CHUNK, stage.rows
    while rows * of_row > room:
        if rows == 1:
            return 0
        rows = (rows + 1) // 2
    return rows


def moved(stage: Stage, micro_batches: int) -> float:
    """Bytes that a step moves in addition to the large products."""
    student, teachers = stage.models
    tokens = stage.rows * stage.tokens
    updated = 0 if stage.lora else student.parameters
    found = updated * (ADAMW + (CLIP if stage.clips else 0) + CASTS * micro_batches)
    found += 3 * tokens * student.layers * (KEPT[0] * student.hidden + KEPT[1] * student.inner)
    for teacher in teachers:
        found += 2 * teacher.parameters * micro_batches
        read = tokens * stage.read
        found += read * teacher.layers * (KEPT[0] * teacher.hidden + KEPT[1] * teacher.inner)
    found += 4 * student.vocabulary * tokens * LOGIT_PASSES["scores"] * stage.scored
    passes = LOGIT_PASSES["kl" if teachers else "ce"]
    return found + 4 * student.vocabulary * tokens * stage.trained * passes


def launches(stage: Stage, micro_batches: int) -> int:
    """Kernels of a step."""
    student, teachers = stage.models
    trained, forward = KERNELS[student.kind]
    found = OUTSIDE + student.layers * (trained + forward * stage.checkpointing)
    found += sum(teacher.layers * KERNELS[teacher.kind][1] for teacher in teachers)
    return found * micro_batches


def writing(stage: Stage, card: Card) -> float:
    """Seconds in which the answers of a step are generated, a token of all prompts at a time."""
    found = 0.0
    for name in stage.writers:
        writer = MODELS[name]
        each = WEIGHTS["student" if name == stage.student and not stage.lora else "teacher"]
        work = 2 * stage.prompts * (writer.trunk + writer.head)
        passing = each * writer.parameters + 8 * writer.vocabulary * stage.prompts
        busy = work / (OF_PEAK * card.flops) + passing / (OF_BANDWIDTH * card.bandwidth)
        kernels = writer.layers * KERNELS[writer.kind][1] + DRAWING
        found += stage.new * max(busy, LAUNCH * kernels)
    return found


@dataclass(frozen=True)
class Predicted:
    """A step on a card."""

    rows: int  # at once; 0: a row does not fit
    busy: float  # seconds of the GPU
    host: float  # seconds of the host
    used: float  # MFU, without writing
    writing: float = 0.0  # seconds

    @property
    def seconds(self) -> float:
        """Of a step."""
        return max(self.busy, self.host) + self.writing


def predict(stage: Stage, card: Card) -> Predicted:
    """By the assumptions above."""
    rows = rows_at_once(stage, card)
    if not rows:
        return Predicted(0, 0, 0, 0)
    micro_batches, tokens = math.ceil(stage.rows / rows), stage.rows * stage.tokens
    work = operations(stage, tokens, tokens * stage.trained)
    busy = work / (OF_PEAK * card.flops)
    busy += moved(stage, micro_batches) / (OF_BANDWIDTH * card.bandwidth)
    host = LAUNCH * launches(stage, micro_batches)
    used = work / (max(busy, host) * card.flops)
    return Predicted(rows, busy, host, used, writing(stage, card))


def table(cards: list[Card]) -> str:
    """All stages on these cards, in Markdown."""
    columns = ("recipe", "card", "rows at once", "GPU, ms", "host, ms", "writing, ms", "step, ms")
    lines = [f"| {' | '.join((*columns, 'bound by', 'MFU'))} |", "|---" * 9 + "|"]
    for stage in (*STAGES, *OTHERS):
        for card in cards:
            found = predict(stage, card)
            if not found.rows:
                lines.append(f"| {stage.name} | {card.name} | does not fit | | | | | | |")
                continue
            each = (found.busy, found.host, found.writing, found.seconds)
            times = [f"{1e3 * t:,.1f}" for t in each]
            bound = "GPU" if found.busy >= found.host else "host"
            cells = [stage.name, card.name, str(found.rows), *times, bound, f"{found.used:.0%}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cards", nargs="*", metavar="CARD", help=", ".join(c.name for c in CARDS))
    asked = parser.parse_args()
    if unknown := [name for name in asked.cards if card_of(name) is None]:
        parser.error(f"no card {unknown[0]!r}; there are {', '.join(c.name for c in CARDS)}")
    chosen = [card for name in asked.cards if (card := card_of(name))] or CARDS
    print("Predicted, not measured: operations, bytes and kernel launches.\n")
    print(table(chosen))


if __name__ == "__main__":
    main()
