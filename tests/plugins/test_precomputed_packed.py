"""DistillKit's packed columns: records packed by hand, bit by bit, are read as written."""

import json
import math
import struct

import numpy as np
import pytest
import tiny
import torch
import yaml
from kdcore_precomputed.packed import Packing
from kdcore_text.record import Record

import kdcore
from kdcore import RunError

pytestmark = pytest.mark.slow

TOKENIZER = tiny.byte_tokenizer()
MODEL = tiny.model(vocabulary=len(TOKENIZER)).eval()
TEXTS = [f"once there were {n} foxes in a wood, and the {n}th of them said no" for n in range(8)]
K = 6
FORMATS = {"float16": "<e", "float32": "<f", "float64": "<d"}


def bits_of(number, count):
    return format(number, f"0{count}b")


def bytes_of(bits):
    whole = bits + "0" * (-len(bits) % 8)
    return [int(whole[n : n + 8], 2) for n in range(0, len(whole), 8)]


def floats(values, dtype):
    if dtype == "bfloat16":  # the upper half of a float32
        return [byte for one in values for byte in struct.pack("<f", one)[2:]]
    return [byte for one in values for byte in struct.pack(FORMATS[dtype], one)]


def packed_ids(ids, d):
    return bytes_of("".join(bits_of(one, math.ceil(math.log2(d))) for one in ids))


def exact(dtype="float32", delta=False, k=K, d=None):
    return {
        "d": d or len(TOKENIZER),
        "k": k,
        "exact_k": k,
        "exact_dtype": dtype,
        "polynomial_terms": None,
        "residual_bins": [],
        "delta_encoding": delta,
        "error_diffusion": False,
    }


def packed(ids, logs, config):
    """One position of values that are stored exactly."""
    if config["delta_encoding"]:
        logs = [logs[0], *np.diff(logs)]
    return packed_ids(ids, config["d"]), floats(logs, config["exact_dtype"])


def record(pairs):
    ids, logs = ([each[n] for each in pairs] for n in (0, 1))
    return Record({"bytepacked_indices": ids, "compressed_logprobs": logs}, "stored: record 1")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("d", [300, 4096, 151_666])
def test_exact_values(dtype, delta, d):
    ids, logs = [7, 299, 0, 12], [-0.5, -1.5, -2.0, -4.0]
    config = exact(dtype, delta, 4, d)
    found = Packing.of(config, []).entries(record([packed(ids, logs, config)] * 2))
    assert found == [(ids, logs)] * 2


def test_a_polynomial_with_residuals_in_bins():
    """By the definition of each part: t = 0, 1, ... behind the exact values."""
    bins = [
        {"scale_dtype": "float32", "element_bits": 3, "num_elements": 3},
        {"scale_dtype": "float16", "element_bits": 1, "num_elements": 2},
    ]
    config = exact(k=8, d=64) | {"exact_k": 2, "polynomial_terms": [0, 1, "sqrt"]}
    config |= {"term_dtype": "float32", "residual_bins": bins}
    coefficients, quantised, signs = [-4.0, -0.5, 0.25], [-4, 3, 0], [1, 0]
    logs = floats([-0.5, -2.0], "float32") + floats(coefficients, "float32")
    logs += floats([0.125], "float32") + bytes_of("".join(bits_of(n + 4, 3) for n in quantised))
    logs += floats([0.5], "float16") + bytes_of("".join(map(str, signs)))
    ids = [*range(8, 16)]
    ((found, values),) = Packing.of(config, []).entries(record([(packed_ids(ids, 64), logs)]))
    residuals = [-0.5, 0.375, 0.0, 0.5, -0.5, 0.0]
    tail = [-4.0 - 0.5 * t + 0.25 * math.sqrt(t) + residuals[t] for t in range(6)]
    assert found == ids
    np.testing.assert_allclose(values, [-0.5, -2.0, *tail], rtol=1e-6)


@pytest.mark.parametrize("normalised", [False, True])
def test_differences_and_powers_of_a_normalised_index(normalised):
    config = exact(k=4, d=64, delta=True) | {"exact_k": 1, "polynomial_terms": [0, 2, "exp"]}
    config |= {"term_dtype": "float64", "normalize_t": normalised}
    logs = floats([-1.0], "float32") + floats([-1.0, -0.5, -0.125], "float64")
    ((_, values),) = Packing.of(config, []).entries(record([(packed_ids([1, 2, 3, 4], 64), logs)]))
    at = [0.0, 0.5, 1.0] if normalised else [0.0, 1.0, 2.0]
    steps = [-1.0, *(-1.0 - 0.5 * t**2 - 0.125 * math.exp(t) for t in at)]
    np.testing.assert_allclose(values, np.cumsum(steps), rtol=1e-6)


def test_masses_that_an_approximation_puts_above_1_are_scaled():
    config = exact(k=2, d=64) | {"exact_k": 1, "polynomial_terms": [0]}
    packed_so = [(packed_ids([1, 2], 64), floats([-0.1, -2.0], "float32"))]
    ((_, values),) = Packing.of(config, []).entries(record(packed_so))
    assert sum(math.exp(one) for one in values) == pytest.approx(1, abs=1e-6)
    wrong = [(packed_ids([1, 2], 64), floats([-0.1, 0.5], "float32"))]
    with pytest.raises(RunError, match=r"position 1: the unpacked masses are 1.9.* together"):
        Packing.of(config, []).entries(record(wrong))


def likeliest(text):
    ids = [*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]
    with torch.no_grad():
        return ids, MODEL(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).topk(K)


def write(folder, config):
    """As DistillKit's sampler: no entry for the first token, and the description next to it."""
    (folder / "stored").mkdir(exist_ok=True)
    if config is not None:
        (folder / "stored" / "compression_config.yaml").write_text(yaml.safe_dump(config))
    lines = []
    for n, text in enumerate(TEXTS):
        ids, best = likeliest(text)
        each = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        pairs = [packed(*pair, config or exact()) for pair in each]
        line = {"input_ids": ids, "bytepacked_indices": [one for one, _ in pairs]}
        lines.append(line | {"compressed_logprobs": [other for _, other in pairs], "id": n})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "stored" / "part-0.jsonl").write_text(text)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model", tokenizer=TOKENIZER)
    MODEL.save_pretrained("model")
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": "and no more"}))
    shape = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2}

    def losses(teacher, name="learned"):
        table = {
            "name": name,
            "student": {"config": shape},
            "tokenizer": {"use": "hf", "model": "model"},
            "data": {"use": "text", "path": "texts.jsonl", "validation": "held.jsonl", "block": 64},
            "teacher": teacher,
            "loss": [{"use": "kl"}],
            "train": {"lr": 1e-2, "steps": 3, "batch": 2, "log_every": 1},
        }
        lines = kdcore.run(table).metrics
        return [line["loss"] for line in lines if line["loss"] is not None]

    return losses


TEACHER = {"use": "precomputed", "path": "stored", "tokens": "input_ids"}


def test_it_teaches_what_the_model_does_that_was_packed(run, tmp_path):
    live = {"use": "cached", "kind": "topk", "k": K, "teacher": {"use": "hf", "model": "model"}}
    write(tmp_path, exact(delta=True))
    np.testing.assert_allclose(run(TEACHER), run(live, "live"), rtol=2e-3)  # the store has halves


def test_the_description_may_stand_in_the_recipe(run, tmp_path):
    write(tmp_path, None)
    with pytest.raises(RunError, match=r"no compression_config.yaml next to them"):
        run(TEACHER)
    table = {key: value for key, value in exact().items() if value is not None}
    assert len(run(TEACHER | {"compression": table})) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"exact_dtype": "float16"},
            r"'compressed_logprobs' has 24 bytes, .* needs 12",
        ),
        ({"d": 70_000}, r"'bytepacked_indices' has 7 bytes, .* needs 13"),
        ({"exact_k": "all"}, r"config.yaml: exact_k: input should be a valid integer"),
    ],
)
def test_another_description_is_refused(run, tmp_path, change, said):
    write(tmp_path, exact())
    (tmp_path / "stored" / "compression_config.yaml").write_text(yaml.safe_dump(exact() | change))
    with pytest.raises(RunError, match=said):
        run(TEACHER)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([300] * 24, "should hold bytes, numbers from 0 to 255"),
        ([0.5] * 24, "should hold bytes, numbers from 0 to 255"),
        (None, "position 3: 'compressed_logprobs' has 0 bytes, and its compression needs 24"),
    ],
)
def test_what_is_no_byte_is_refused(row, said):
    pairs = [packed(list(range(K)), [-9.0] * K, exact()) for _ in range(4)]
    one = record(pairs)
    one.values["compressed_logprobs"][2] = row
    with pytest.raises(RunError, match=f"stored: record 1.*{said}"):
        Packing.of(exact(), []).entries(one)


def test_bytes_are_bytes():
    """A binary column of parquet."""
    pairs = [packed(list(range(K)), [-0.5 - n for n in range(K)], exact()) for _ in range(4)]
    lists, binary = record(pairs), record(pairs)
    for column, rows in binary.values.items():
        binary.values[column] = [bytes(row) for row in rows]
    assert Packing.of(exact(), []).entries(binary) == Packing.of(exact(), []).entries(lists)


def test_a_description_that_is_no_yaml_is_refused(run, tmp_path):
    write(tmp_path, exact())
    (tmp_path / "stored" / "compression_config.yaml").write_text("d: [1")
    with pytest.raises(RunError, match=r"compression_config.yaml cannot be read as YAML"):
        run(TEACHER)
