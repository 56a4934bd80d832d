"""The shipped `rho_qwen` and its controls against a stand-in hub, changed only in `train.steps`.

Ids, columns, splits and defaults of the shipped files are what is tested. The models are tiny, with
the real widths; the tokenizer is the real Qwen2.5 one where KDCORE_REAL_MODELS names a folder that
has it, else one of our own with as many ids.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from standin_hub import serving

pytestmark = pytest.mark.slow

SPECIAL = [f"<|special-{n}|>" for n in range(20)]
CONFIG = "wikitext-103-raw-v1"
README = "\n".join(
    ["---", "configs:", f"- config_name: {CONFIG}", "  data_files:"]
    + [f"  - split: {s}\n    path: {CONFIG}/{s}-*" for s in ("test", "train", "validation")]
    + ["---", ""]
)
WORDS = "the old mill stands by a slow river and turns when rain has come down from far hills"


def tokenizer():
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    real = Path(os.environ.get("KDCORE_REAL_MODELS", "-")) / "qwen2.5-tokenizer"
    if real.is_dir():
        return AutoTokenizer.from_pretrained(real)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = letters + [f"filler-{n}" for n in range(151_643 - len(letters))]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", *SPECIAL, "<|im_end|>"])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    assert len(made) == 151_665
    return made


def lines(count, seed):
    draw = np.random.default_rng(seed)
    words = WORDS.split()
    texts = [" ".join(draw.choice(words, draw.integers(1, 60))) for _ in range(count)]
    return [text + "\n" if n % 5 else "" for n, text in enumerate(texts)]


def lay_hub(root, student_rows, reference_rows):
    import torch
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ids = tokenizer()
    for name, rows in {"Qwen2.5-0.5B": student_rows, "Qwen2.5-1.5B": reference_rows}.items():
        torch.manual_seed(rows + len(name))
        config = Qwen2Config(
            vocab_size=rows,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
        folder = root / "models" / "Qwen" / name
        Qwen2ForCausalLM(config).save_pretrained(folder)
        ids.save_pretrained(folder)
    corpus = root / "datasets" / "Salesforce" / "wikitext"
    (corpus / CONFIG).mkdir(parents=True)
    (corpus / "README.md").write_text(README)
    for seed, (split, count) in enumerate({"train": 300, "validation": 30, "test": 10}.items()):
        table = Dataset.from_dict({"text": lines(count, seed)})
        table.to_parquet(corpus / CONFIG / f"{split}-00000-of-00001.parquet")
    return ids


@pytest.fixture(
    scope="module", params=[(151_936, 152_064), (152_064, 151_936)], ids=["wider", "narrower"]
)
def hub(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    ids = lay_hub(root, *request.param)
    home = tmp_path_factory.mktemp("home")
    with serving(root) as (url, asked):
        environment = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_DATASETS_CACHE": str(home / "datasets"),
        }

        def kdcore(*arguments):
            return subprocess.run(
                [sys.executable, "-m", "kdcore", *arguments],
                cwd=home,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )

        yield kdcore, home, asked, ids


def metrics(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if "loss" in line], [line for line in read if "eval/nll" in line]


def test_the_shipped_recipes_run(hub):
    kdcore, home, asked, ids = hub
    first = kdcore("run", "rho_qwen", "--set", "train.steps=5")
    assert first.returncode == 0, first.stderr
    assert "151,665 shared ids" in first.stderr

    (folder,) = (home / "runs").glob("rho_qwen-*")
    trained, evaluated = metrics(folder)
    assert len(evaluated) == 2
    # Every token of a piece but its first can be selected, and nothing else: no pad, no border.
    pieces = [
        len(ids.encode(line, add_special_tokens=False)) for line in lines(300, 0) if line.strip()
    ]
    every = sum(n - -(-n // 128) for n in pieces)
    assert 0 < trained[-1]["tokens"] < every
    assert trained[-1]["kept"] == pytest.approx(0.3, abs=0.02)
    assert math.isfinite(trained[-1]["selection/threshold"])

    # The first step came before the corpus was scored: most of it never was.
    (cache,) = (home / "runs" / "caches").rglob("nll.f32")
    scored = np.isfinite(np.fromfile(cache, np.float32)).sum()
    assert trained[-1]["tokens"] <= scored < every

    asked.clear()
    second = kdcore("run", "rho_qwen", "--set", "train.steps=5", "--fresh")
    assert second.returncode == 0, second.stderr
    loaded = [line for line in asked if "Qwen2.5-1.5B" in line and "safetensors" in line]
    assert not loaded
    again, _ = metrics(folder.with_name(folder.name + "-2"))
    assert [line["loss"] for line in again] == [line["loss"] for line in trained]


@pytest.mark.parametrize("control, kept", [("rho_qwen_all", 1.0), ("rho_qwen_random", 0.3)])
def test_the_controls_run(hub, control, kept):
    kdcore, home, _, _ = hub
    done = kdcore("run", control, "--set", "train.steps=3")
    assert done.returncode == 0, done.stderr
    (folder,) = (home / "runs").glob(f"{control}-*")
    trained, _ = metrics(folder)
    assert trained[-1]["kept"] == pytest.approx(kept, abs=0.03)
