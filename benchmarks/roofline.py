"""What a step of each founding recipe should take on named cards, predicted: nothing was measured.

    python benchmarks/roofline.py                  all cards
    python benchmarks/roofline.py H100 T4          some of them

From the operations of the matrix products, the bytes that optimizer, casts, activations and logits
move, and the kernels that the host launches. A step takes what is longest of the host's time and
the GPU's; memory decides how many rows run at once. The assumptions are the constants below; a
GPU's measurement (`make gpu`) replaces them.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

LAUNCH = 5e-6  # seconds of host time a kernel
OF_PEAK = 0.55  # what large products reach
OF_BANDWIDTH = 0.85
ADAMW = 28  # bytes a trained parameter: reads weight, gradient and two moments, writes all but one
CLIP = 12  # the gradient's norm, and the gradient scaled
CASTS = 12  # a micro-batch: weights to half, gradients from half and onto those that are there
LOGIT_PASSES = {"ce": 6, "kl": 14, "scores": 3}  # over float32 logits: compiled losses, casts
KEPT = 34, 6  # bytes of activations a token and layer: so many times width and inner width
KERNELS = {"llama": (143, 39), "qwen2": (152, 39), "gpt2": (143, 39)}  # trained; half, forward
OUTSIDE = 65  # kernels of a micro-batch beside the layers
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


@dataclass(frozen=True)
class Model:
    """The shape of a causal language model."""

    kind: str  # as transformers names it
    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int  # heads of keys and values
    vocabulary: int  # rows of the head
    tied: bool
    positions: int = 2048

    @property
    def trunk(self) -> int:
        """Parameters of all layers' matrices."""
        grouped = self.hidden * self.hidden * self.groups // self.heads
        gates = 2 if self.kind == "gpt2" else 3
        return self.layers * (2 * self.hidden**2 + 2 * grouped + gates * self.hidden * self.inner)

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All but norms, biases and learned positions."""
        return self.trunk + self.head * (1 if self.tied else 2)

    def config(self) -> dict[str, object]:
        """As transformers' configs have it."""
        shared = {"vocab_size": self.vocabulary, "tie_word_embeddings": self.tied}
        if self.kind == "gpt2":
            sizes = {"n_embd": self.hidden, "n_layer": self.layers, "n_head": self.heads}
            return {**shared, **sizes, "n_inner": self.inner, "n_positions": self.positions}
        return {
            **shared,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "max_position_embeddings": self.positions,
        }


MODELS = {
    "qwen-0.5b": Model("qwen2", 896, 4864, 24, 14, 2, 151_936, True),
    "qwen-1.5b": Model("qwen2", 1536, 8960, 28, 12, 2, 151_936, True),
    "qwen-3b": Model("qwen2", 2048, 11_008, 36, 16, 2, 151_936, True),
    "qwen-7b": Model("qwen2", 3584, 18_944, 28, 28, 4, 152_064, False),
    "tinystories": Model("llama", 256, 768, 4, 16, 8, 32_000, False),
    "gpt2": Model("gpt2", 1536, 6144, 24, 16, 16, 16_000, True, 1024),
    "llama": Model("llama", 1024, 3072, 24, 8, 8, 16_000, False),
    "babyllama": Model("llama", 512, 1024, 16, 8, 8, 16_000, False),
}


@dataclass(frozen=True)
class Stage:
    """What an optimizer step of a founding recipe does."""

    name: str
    student: str
    rows: int
    tokens: int  # of a row
    context: int  # tokens of a document, which attention reaches
    teachers: tuple[str, ...] = ()
    trained: float = 1.0  # the share of tokens that the losses see
    scored: bool = False  # all tokens' likelihoods are asked for first
    lora: bool = False
    clips: bool = True

    @property
    def models(self) -> tuple[Model, list[Model]]:
        """The student and its teachers."""
        return MODELS[self.student], [MODELS[name] for name in self.teachers]


STAGES = [
    Stage("rho_qwen", "qwen-0.5b", 4, 128, 128, trained=0.3, scored=True, clips=False),
    # 32 dialogues, packed.
    Stage("qwen_kl_sft.teacher", "qwen-7b", 7, 512, 110, trained=0.6, lora=True),
    Stage("qwen_kl_sft.student", "qwen-0.5b", 7, 512, 110, ("qwen-7b",), trained=0.6),
    Stage("tinystories_llama", "tinystories", 4, 210, 210),
    Stage("babyllama.gpt2", "gpt2", 128, 128, 128),
    Stage("babyllama.llama", "llama", 128, 128, 128),
    Stage("babyllama.student", "babyllama", 32, 128, 128, ("gpt2", "llama")),
]


def operations(stage: Stage, tokens: float, trained: float) -> float:
    """Floating-point operations of a step over so many tokens, of which the losses see `trained`.

    Those that the experiment needs: nothing recomputed, and a cached teacher is free.
    """
    student, teachers = stage.models
    passes = 4 if stage.lora else 6  # frozen weights have no gradient
    found = passes * (student.trunk * tokens + student.head * trained)
    found += 6 * student.layers * student.hidden * tokens * stage.context
    found += 2 * student.head * tokens if stage.scored else 0
    for teacher in teachers:
        found += 2 * (teacher.trunk * tokens + teacher.head * trained)
        found += 2 * teacher.layers * teacher.hidden * tokens * stage.context
    return found


def weights(stage: Stage) -> float:
    """Bytes that weights, gradients and the optimizer take whatever the batch."""
    student, teachers = stage.models
    own = student.parameters * (2 if stage.lora else 16)
    return LIBRARIES + own + 2 * sum(teacher.parameters for teacher in teachers)


def rows_at_once(stage: Stage, card: Card) -> int:
    """The largest of the batch, its half, its quarter, ... that fits; 0 where a row does not."""
    student, _ = stage.models
    width, inner = (
        times * n for times, n in zip(KEPT, (student.hidden, student.inner), strict=True)
    )
    of_row = stage.tokens * student.layers * (width + inner)
    room, rows = card.memory - weights(stage) - CHUNK, stage.rows
    while rows * of_row > room:
        if rows == 1:
            return 0
        rows = (rows + 1) // 2
    return rows


def moved(stage: Stage, micro_batches: int) -> float:
    """Bytes that a step moves besides what the large products do."""
    student, teachers = stage.models
    tokens = stage.rows * stage.tokens
    updated = 0 if stage.lora else student.parameters
    found = updated * (ADAMW + (CLIP if stage.clips else 0) + CASTS * micro_batches)
    found += 3 * tokens * student.layers * (KEPT[0] * student.hidden + KEPT[1] * student.inner)
    for teacher in teachers:
        found += 2 * teacher.parameters * micro_batches
        found += tokens * teacher.layers * (KEPT[0] * teacher.hidden + KEPT[1] * teacher.inner)
    found += 4 * student.vocabulary * tokens * LOGIT_PASSES["scores"] * stage.scored
    passes = LOGIT_PASSES["kl" if teachers else "ce"]
    return found + 4 * student.vocabulary * tokens * stage.trained * passes


def launches(stage: Stage, micro_batches: int) -> int:
    """Kernels of a step."""
    student, teachers = stage.models
    found = OUTSIDE + student.layers * KERNELS[student.kind][0]
    found += sum(teacher.layers * KERNELS[teacher.kind][1] for teacher in teachers)
    return found * micro_batches


@dataclass(frozen=True)
class Predicted:
    """A step on a card."""

    rows: int  # at once; 0: a row does not fit
    busy: float  # seconds of the GPU
    host: float  # seconds of the host
    used: float  # MFU

    @property
    def seconds(self) -> float:
        """Of a step."""
        return max(self.busy, self.host)


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
    return Predicted(rows, busy, host, work / (max(busy, host) * card.flops))


def table(cards: list[Card]) -> str:
    """All stages on these cards, in Markdown."""
    lines = ["| recipe | card | rows at once | GPU, ms | host, ms | step, ms | bound by | MFU |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for stage in STAGES:
        for card in cards:
            found = predict(stage, card)
            if not found.rows:
                lines.append(f"| {stage.name} | {card.name} | does not fit | | | | | |")
                continue
            times = [f"{1e3 * t:,.1f}" for t in (found.busy, found.host, found.seconds)]
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
