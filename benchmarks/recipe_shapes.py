"""The shapes of the GPU recipes' models, and what an optimizer step of each recipe does."""

from __future__ import annotations

from dataclasses import dataclass


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
    "qwen-1.5b-half": Model("qwen2", 1536, 8960, 14, 12, 2, 151_936, True),
    "llama-1b": Model("llama", 2048, 8192, 16, 32, 8, 128_256, True),
    "llama-8b": Model("llama", 4096, 14_336, 32, 32, 8, 128_256, False),
    "babylm": Model("llama", 256, 1024, 8, 8, 8, 128_256, False),
    "smollm2-135m": Model("llama", 576, 1536, 30, 9, 3, 49_152, True),
    "smollm2-360m": Model("llama", 960, 2560, 32, 15, 5, 49_152, True),
}


@dataclass(frozen=True)
class Stage:
    """What an optimizer step of a recipe does."""

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
    read: float = 1.0  # the share of the tokens that each teacher reads
    sparse: bool = False  # the teacher's few likeliest ids are stored, and no model is here
    projections: int = 0  # parameters of those between hidden states
    checkpointing: bool = False
    adapter_off: bool = False  # the teacher is the student without its adapter
    writers: tuple[str, ...] = ()  # models that answer the prompts
    prompts: int = 0  # that are answered in a step
    new: int = 0  # tokens of an answer

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
"""Those of the founding recipes, which a GPU day measures."""

_DIALOGUES = ("qwen-0.5b", 7, 512, 110)
_BIG = ("qwen-7b",)
_HALF = {"writers": ("qwen-0.5b",), "prompts": 16, "new": 128}
_ALL = {"writers": ("qwen-0.5b",), "prompts": 32, "new": 128}
_PROJECTIONS = 2 * 896 * 3584

OTHERS = [
    Stage("rho_qwen_all", "qwen-0.5b", 4, 128, 128, clips=False),
    Stage("rho_qwen_random", "qwen-0.5b", 4, 128, 128, trained=0.3, clips=False),
    Stage("qwen_kl_sft_ce.student", *_DIALOGUES, trained=0.6),
    Stage("qwen_kl_sft_only_kl.student", *_DIALOGUES, _BIG, trained=0.6),
    Stage("qwen_kl_sft_finetune_first.finetuned", *_DIALOGUES, trained=0.6),
    Stage("qwen_kl_sft_finetune_first.student", *_DIALOGUES, _BIG, trained=0.6),
    Stage("babyllama_ce.student", "babyllama", 32, 128, 128),
    Stage("hidden_qwen.student", *_DIALOGUES, _BIG, trained=0.6, projections=_PROJECTIONS),
    Stage("onpolicy_qwen.student", *_DIALOGUES, _BIG, trained=0.6, **_HALF),
    Stage("minillm_qwen.student", *_DIALOGUES, _BIG, trained=0.6, **_HALF),
    Stage("opd_qwen.student", *_DIALOGUES, _BIG, trained=0.6, **_ALL),
    # Two answers to each prompt.
    Stage(
        *("distillm2_qwen.student", "qwen-0.5b", 14, 512, 110, _BIG, 0.6),
        **{**_ALL, "writers": ("qwen-7b", "qwen-0.5b")},
    ),
    Stage("seqkd_qwen.student", *_DIALOGUES, trained=0.6, **{**_ALL, "writers": _BIG}),
    Stage(
        *("opsd_qwen", "qwen-1.5b", 32, 448, 448, ("qwen-1.5b",), 0.8),
        **{"lora": True, "adapter_off": True, "writers": ("qwen-1.5b",)},
        **{"prompts": 32, "new": 384},
    ),
    Stage("cross_tokenizer", "qwen-0.5b", 32, 512, 512, ("llama-1b",)),
    Stage(
        *("prune_and_distil", "qwen-1.5b-half", 16, 512, 512, ("qwen-1.5b",)),
        **{"checkpointing": True, "projections": 0},
    ),
    Stage("llama3_babylm.student", "babylm", 8, 128, 128, ("llama-8b",)),
    # Each teacher reads its own domain.
    Stage("mix_domains", "qwen-0.5b", 32, 512, 250, ("qwen-1.5b", "qwen-1.5b"), 0.6, read=0.5),
    Stage("distil", "smollm2-135m", 32, 512, 110, ("smollm2-360m",), 0.6),
    # The server's time is not counted.
    Stage("served_qwen", "qwen-0.5b", 32, 512, 110, trained=0.6, sparse=True),
    Stage("served_answers", "qwen-0.5b", 32, 512, 512, trained=0.8),
]
"""Those of all other recipes that need a GPU."""
