"""What the recipes ask the hub for, made here: models of the real shapes with random weights,
tokenizers with the right number of ids, texts of random characters, each of which is one token.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from world import World

if TYPE_CHECKING:
    from roofline import Stage

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
EOS = {"chat": "<|im_end|>", "plain": "<|endoftext|>"}
FIRST, OF_A_PREFIX = 0x4E00, 64  # characters of three bytes, 64 of which share the first two


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, whole: made next to its place and moved there."""
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(folder)
    return folder


def tokenizer(world: World, name: str) -> Path:
    """A folder with a tokenizer for this model: a character is a token."""
    ids, kind = world.ids(name), "chat" if name.startswith("qwen") else "plain"
    return _once(world.made / f"tokenizer-{ids}-{kind}", lambda at: _tokenizer(at, ids, kind))


def characters(ids: int) -> int:
    """How many characters are tokens of their own, among so many ids."""
    room = (ids - 256 - len(SPECIAL)) * OF_A_PREFIX // (OF_A_PREFIX + 1)
    return min(16_384, room // OF_A_PREFIX * OF_A_PREFIX)


def _tokenizer(folder: Path, ids: int, kind: str) -> None:
    """Bytes, and merges that make one token of each character: all classes load such a one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges = dict[tuple[str, str], None]()
    for n in range(characters(ids)):
        first, second, third = shown.pre_tokenize_str(chr(FIRST + n))[0][0]
        merges |= {(first, second): None, (first + second, third): None}
    known = [*letters, *dict.fromkeys("".join(pair) for pair in merges)]
    known += [f"filler-{n}" for n in range(ids - len(known) - len(SPECIAL))]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(known)}, [*merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS[kind],
        pad_token=SPECIAL[0],
        chat_template=CHAT if kind == "chat" else None,
    )
    assert len(made) == ids
    made.save_pretrained(folder)


def config_folder(world: World, name: str) -> Path:
    """A folder with the model's config and tokenizer and no weights: enough for a plan."""

    def make(at: Path) -> None:
        shutil.copytree(tokenizer(world, name), at, dirs_exist_ok=True)
        config(world, name).save_pretrained(at)

    return _once(world.made / f"{name}-config", make)


def model(world: World, name: str) -> Path:
    """A folder with the model, random weights in bf16, and its tokenizer."""

    def make(at: Path) -> None:
        from transformers import AutoModelForCausalLM

        shutil.copytree(tokenizer(world, name), at, dirs_exist_ok=True)
        torch.manual_seed(len(name))
        with torch.device(world.device):  # seconds on a GPU, minutes on a CPU
            made = AutoModelForCausalLM.from_config(config(world, name), dtype=torch.bfloat16)
        made.save_pretrained(at, max_shard_size="4GB")

    return _once(world.made / name, make)


def config(world: World, name: str) -> Any:
    """Its config for transformers."""
    from transformers import AutoConfig

    shape = world.shape(name)
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    return AutoConfig.for_model(shape.kind, **shape.config(), **ends)


def all_of(world: World, stage: Stage) -> None:
    """Every model of a stage, where each is needed with weights."""
    for name in (stage.student, *stage.teachers):
        if name.startswith("qwen") or name in stage.teachers:
            model(world, name)


def texts(world: World, name: str, kind: str) -> tuple[Path, Path]:
    """Files to train on and to validate on, for this model's tokenizer.

    `kind` is "lines", "stories" or "dialogues".
    """
    words = characters(world.ids(name))
    folder = world.made / f"{kind}-{words}"
    write = {"lines": _lines, "stories": _stories, "dialogues": _dialogues}[kind]

    def make(at: Path) -> None:
        count = 64 if world.rehearse else 8192 if kind == "dialogues" else 4096
        for split, n in (("train", count), ("validation", 8)):
            (at / f"{split}{_ENDINGS[kind]}").write_text(write(n, words, len(split)))

    _once(folder, make)
    return folder / f"train{_ENDINGS[kind]}", folder / f"validation{_ENDINGS[kind]}"


_ENDINGS = {"lines": ".txt", "stories": ".txt", "dialogues": ".jsonl"}


def _some(draw: np.random.Generator, count: int, words: int) -> str:
    return "".join(chr(FIRST + n) for n in draw.integers(0, words, count))


def _lines(count: int, words: int, seed: int) -> str:
    draw = np.random.default_rng(seed)
    return "\n\n".join(_some(draw, 128, words) for _ in range(count)) + "\n"


def _stories(count: int, words: int, seed: int) -> str:
    draw = np.random.default_rng(seed)
    stories = (_some(draw, int(draw.integers(120, 300)), words) for _ in range(count))
    return "\n<|endoftext|>\n".join(stories) + "\n"


def _dialogues(count: int, words: int, seed: int) -> str:
    draw = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        prompt, answer = int(draw.integers(20, 60)), int(draw.integers(30, 100))
        said = {"prompt": _some(draw, prompt, words), "completion": _some(draw, answer, words)}
        lines.append(json.dumps(said))
    return "\n".join(lines) + "\n"
