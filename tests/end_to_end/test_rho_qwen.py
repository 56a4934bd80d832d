"""The shipped `rho_qwen` and its controls against a stand-in hub, changed only in `train.steps`.

Ids, columns, splits and defaults of the shipped files are what is tested. The models are tiny, with
the real widths; the tokenizer is the real Qwen2.5 one where KDCORE_REAL_MODELS names a folder that
has it, else one of our own with as many ids.
"""

import math

import numpy as np
import pytest
from founding_hub import hub_of, lay_data, lay_qwen, metrics, qwen_tokenizer, sentences

pytestmark = pytest.mark.slow


def lines(count, seed):
    """As wikitext has them: a newline at the end, and every fifth empty."""
    return [text + "\n" if n % 5 else "" for n, text in enumerate(sentences(count, seed))]


@pytest.fixture(
    scope="module", params=[(151_936, 152_064), (152_064, 151_936)], ids=["wider", "narrower"]
)
def hub(request, tmp_path_factory):
    root, ids = tmp_path_factory.mktemp("hub"), qwen_tokenizer()
    for name, rows in zip(("Qwen2.5-0.5B", "Qwen2.5-1.5B"), request.param, strict=True):
        lay_qwen(root, name, rows, ids)
    counts = {"train": 300, "validation": 30, "test": 10}
    splits = {split: {"text": lines(n, seed)} for seed, (split, n) in enumerate(counts.items())}
    lay_data(root, "Salesforce/wikitext", splits, config="wikitext-103-raw-v1")
    with hub_of(root, tmp_path_factory.mktemp("home")) as hub:
        yield hub, ids


def test_the_shipped_recipes_run(hub):
    hub, ids = hub
    folder = hub.run("rho_qwen", "train.steps=3")[""]
    assert "151,665 shared ids" in hub.said
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
    (cache,) = (hub.home / "runs" / "caches").rglob("nll.f32")
    scored = np.isfinite(np.fromfile(cache, np.float32)).sum()
    assert trained[-1]["tokens"] <= scored < every

    hub.asked.clear()
    assert hub.kdcore("run", "rho_qwen", "--set", "train.steps=3", "--fresh") == 0, hub.said
    loaded = [line for line in hub.asked if "Qwen2.5-1.5B" in line and "safetensors" in line]
    assert not loaded
    again, _ = metrics(folder.with_name(folder.name + "-2"))
    assert [line["loss"] for line in again] == [line["loss"] for line in trained]


@pytest.mark.parametrize("control, kept", [("rho_qwen_all", 1.0), ("rho_qwen_random", 0.3)])
def test_the_controls_run(hub, control, kept):
    hub, _ = hub
    trained, _ = metrics(hub.run(control, "train.steps=3")[""])
    assert trained[-1]["kept"] == pytest.approx(kept, abs=0.03)
