"""Distributions that others wrote teach what the model that wrote them does, or are refused."""

import json
from functools import cache

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
import torch

import kdcore
from kdcore import RecipeError, RunError

pytestmark = pytest.mark.slow

TOKENIZER = tiny.byte_tokenizer()
MODEL = tiny.model(vocabulary=len(TOKENIZER)).eval()
TEXTS = [f"once there were {n} foxes in a wood, and the {n}th of them said no" for n in range(24)]
K = 6


@cache
def likeliest(text):
    """The ids of a document, and the model's log-probabilities of each token but the first."""
    ids = [*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]
    with torch.no_grad():
        return ids, MODEL(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).topk(K)


def plain(n, text, at="own"):
    ids, best = likeliest(text)
    few, logs = best.indices.tolist(), best.values.tolist()
    found = {"id": n, "text": text, "input_ids": ids}
    if at == "own":
        return found | {"few": [[], *few], "logs": [[], *logs]}
    return found | {"few": [*few, few[0]], "logs": [*logs, logs[0]]}


def axolotl(n, text):
    ids, best = likeliest(text)
    each = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    pairs = [
        [{"token": f"token_id:{i}", "logprob": v} for i, v in zip(few, logs, strict=True)]
        for few, logs in each
    ]
    return {"id": n, "text": text, "input_ids": ids, "logs": [None, *pairs]}


def vllm(n, text):
    found = axolotl(n, text)
    return found | {"logs": [entry and dict(map(by_id, entry)) for entry in found["logs"]]}


def by_id(one):
    return one["token"].removeprefix("token_id:"), {"logprob": one["logprob"]}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model", tokenizer=TOKENIZER)
    (tmp_path / "texts.jsonl").write_text(
        "\n".join(json.dumps({"id": n, "text": text}) for n, text in enumerate(TEXTS))
    )
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": "and no more", "id": -1}) + "\n")


def write(records, name="stored.jsonl"):
    with open(name, "w") as file:
        file.writelines(json.dumps(each) + "\n" for each in records)


def recipe(teacher, **more):
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
    data = {"use": "text", "path": "texts.jsonl", "validation": "held.jsonl", "block": 64}
    return {
        "name": "learned",
        "student": {"config": config | {"num_hidden_layers": 1, "num_attention_heads": 2}},
        "tokenizer": {"use": "hf", "model": "model"},
        "data": data | more.pop("data", {}),
        "teacher": teacher,
        "loss": [{"use": "kl"}],
        "train": {"lr": 1e-2, "steps": 3, "batch": 2, "log_every": 1},
    } | more


def precomputed(**more):
    options = {"use": "precomputed", "path": "stored.jsonl", "log_probs": "logs"}
    return options | {"tokens": "input_ids"} | more


def by_length(**more):
    return {key: value for key, value in precomputed(**more).items() if key != "tokens"}


def losses(result):
    return [line["loss"] for line in result.metrics if line["loss"] is not None]


@pytest.fixture
def live(here, tmp_path):
    model = {"use": "hf", "model": "model"}
    MODEL.save_pretrained("model")
    return losses(
        kdcore.run(recipe({"use": "cached", "kind": "topk", "k": K, "teacher": model}), out="live")
    )


@pytest.mark.parametrize(
    ("records", "options"),
    [
        (plain, {"ids": "few"}),
        (lambda n, t: plain(n, t, "next"), {"ids": "few", "position": "next"}),
        (axolotl, {}),
        (vllm, {}),
    ],
    ids=["plain", "next", "axolotl", "vllm"],
)
def test_it_teaches_what_the_model_does_that_wrote_it(live, records, options):
    write(records(n, text) for n, text in enumerate(TEXTS))
    found = losses(kdcore.run(recipe(precomputed(**options))))
    np.testing.assert_allclose(found, live, rtol=2e-3)  # the store has halves


def test_parquet_of_other_order_is_matched_by_a_column(live):
    records = [plain(n, text) for n, text in reversed([*enumerate(TEXTS)])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), "stored.parquet")
    made = precomputed(path="stored.parquet", ids="few", key="id")
    found = losses(kdcore.run(recipe(made, data={"keep_columns": ["id"]})))
    np.testing.assert_allclose(found, live, rtol=2e-3)


def test_cached_around_it_reads_the_file_once(live):
    write(plain(n, text) for n, text in enumerate(TEXTS))
    wrapped = {"use": "cached", "kind": "topk", "teacher": precomputed(ids="few")}
    made = recipe(wrapped)
    first = losses(kdcore.run(made))
    again = losses(kdcore.run(made, fresh=True))
    assert first == again
    np.testing.assert_allclose(first, live, rtol=2e-3)


def test_unrecorded_positions_are_not_known():
    records = [plain(n, text) for n, text in enumerate(TEXTS)]
    for each in records:
        each["logs"] = [[], *([few, []][n % 2] for n, few in enumerate(each["logs"][1:]))]
        each["few"] = [[], *([few, []][n % 2] for n, few in enumerate(each["few"][1:]))]
    write(records)
    half = kdcore.run(recipe(precomputed(ids="few"), loss=[{"use": "ce"}, {"use": "kl"}]))
    assert all(np.isfinite(losses(half)))
    for each in records:
        each["logs"], each["few"] = ([[]] * len(each["few"]) for _ in range(2))
    records[0] = plain(0, TEXTS[0])
    write(records)
    made = recipe(precomputed(ids="few"), loss=[{"use": "ce"}, {"use": "kl"}])
    none = kdcore.run(made, fresh=True)
    assert losses(none) != losses(half)


def test_a_record_may_tell_of_the_last_tokens_only():
    sure_of = sure("own")
    for each in sure_of:
        each["logs"], each["few"] = each["logs"][9:], each["few"][9:]
    write(sure_of)
    with pytest.raises(RunError, match=r"record 1 .*has \d+ positions, and document 1"):
        kdcore.run(recipe(by_length(ids="few")))
    assert losses(kdcore.run(recipe(by_length(ids="few", part=True))))


def test_without_a_tail_the_ids_are_all_there_is():
    write(plain(n, text) for n, text in enumerate(TEXTS))
    with_tail = losses(kdcore.run(recipe(precomputed(ids="few"))))
    without = losses(kdcore.run(recipe(precomputed(ids="few", tail=False))))
    assert with_tail != without


def changed(change, n=3):
    records = [plain(m, text) for m, text in enumerate(TEXTS)]
    change(records[n])
    return records


def put(key, position, value):
    def change(record):
        record[key][position] = value

    return change


BROKEN = {
    "ids and numbers": (
        put("logs", 2, [-1.0]),
        r"stored.jsonl: record 4 .*, position 3: 6 ids with 1 log-pr",
    ),
    "above 0": (put("logs", 2, [0.5, *[-9.0] * 5]), "position 3: a log-probability of 0.5; at"),
    "NaN": (put("logs", 2, [float("nan"), *[-9.0] * 5]), "a log-probability of nan; at"),
    "above 1": (put("logs", 2, [-0.1] * 6), r"position 3: the masses are 5.429 together"),
    "twice": (put("few", 2, [7, 7, 1, 2, 3, 4]), "position 3: the id 7 occurs twice"),
    "vocabulary": (put("few", 2, [9999, 7, 1, 2, 3, 4]), "the id 9999, and student and teacher"),
    "negative": (put("few", 2, [-1, 7, 1, 2, 3, 4]), "the id -1, and student and teacher"),
    "a number at a position": (put("few", 2, 7), "position 3: 'few' holds int, and should hold a"),
    "a text at a position": (put("logs", 2, "abc"), "position 3: 'logs' holds str, and should ho"),
    "no int": (put("few", 2, [10**30, 7, 1, 2, 3, 4]), "position 3: ids should be whole numbers b"),
    "own ids": (
        lambda record: record.update(input_ids=[*record["input_ids"], 2**40]),
        "'input_ids' should hold a list",
    ),
    "floats": (put("few", 2, [1.5, 7, 1, 2, 3, 4]), "ids should be whole numbers"),
    "texts": (put("logs", 2, ["-1"] * 6), "log-probabilities should be numbers"),
    "length": (lambda record: record["few"].pop(), r"has 44 positions in .few. and 45 in 'logs'"),
    "no column": (lambda record: record.pop("logs"), "has no column 'logs': it has id, text"),
    "no list": (lambda record: record.update(few=3), "'few' holds int, and should hold a list"),
    "packed": (
        lambda record: (record.pop("few"), record.update(packed_indices=[[1]])),
        "packed by an older DistillKit, as logits; unpack them",
    ),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_bad_records_are_refused_with_their_place(change, said):
    write(changed(change))
    with pytest.raises(RunError, match=said):
        kdcore.run(recipe(precomputed(ids="few")))


@pytest.mark.parametrize(
    "entry", [[[-0.1, 7, None]], "abc", 3, [{"logprob": -0.1}], {"seven": {"logprob": -0.1}}]
)
def test_an_entry_of_another_shape_is_no_unknown_position(entry):
    """SGLang's lists, for example, which have no names."""
    records = [axolotl(n, text) for n, text in enumerate(TEXTS)]
    records[3]["logs"][2] = entry
    write(records)
    with pytest.raises(RunError, match=r"record 4 .*, position 3: 'logs' should hold ids with th"):
        kdcore.run(recipe(precomputed()))


def test_records_of_another_length_are_refused():
    def shorter(record):
        record["few"], record["logs"] = record["few"][:-2], record["logs"][:-2]

    write(changed(shorter))
    with pytest.raises(
        RunError, match=r"record 4 .*has \d+ positions, and document 4 of the data has"
    ):
        kdcore.run(recipe(by_length(ids="few")))


def test_records_of_another_order_are_refused():
    swapped = [plain(n, text) for n, text in enumerate(TEXTS)]
    swapped[4], swapped[5] = swapped[5], swapped[4]
    write(swapped)
    with pytest.raises(
        RunError, match=r"record 5 .*has \d+ tokens, and document 5 .*; token \d+ is \d+ th"
    ):
        kdcore.run(recipe(precomputed(ids="few", tokens="input_ids")))


def sure(position):
    """Records of a model that is nearly sure of each token, at the entry of another one."""
    found = []
    for n, text in enumerate(TEXTS):
        ids, _ = likeliest(text)
        entries = [[one, (one + 1) % len(TOKENIZER)] for one in ids]
        entries = {"next": [*entries[1:], entries[0]], "own": entries, "none": entries[::-1]}
        found.append({"id": n, "text": text, "few": entries[position], "logs": [[-0.05, -4]]})
        found[-1]["logs"] *= len(ids)
    return found


@pytest.mark.parametrize(
    ("written", "position", "said"),
    [
        ("next", "own", r'the neighbouring tokens: set position = "next"'),
        ("own", "next", r'the neighbouring tokens: set position = "own"'),
        ("none", "own", "of other texts, in another order, or of another tokenizer"),
    ],
)
def test_entries_of_other_tokens_are_found_out_by_their_masses(written, position, said):
    write(sure(written))
    with pytest.raises(RunError, match=said):
        kdcore.run(recipe(by_length(ids="few", position=position)))


def test_other_numbers_of_records_and_keys_are_refused():
    write([plain(n, text) for n, text in enumerate(TEXTS)][:-1])
    with pytest.raises(RunError, match="23 records, and the train data 24 documents"):
        kdcore.run(recipe(precomputed(ids="few")))
    keep = {"keep_columns": ["id"]}
    with pytest.raises(RunError, match="1 of 24 documents have no record in stored"):
        kdcore.run(recipe(precomputed(ids="few", key="id"), data=keep))
    write([plain(n // 2, text) for n, text in enumerate(TEXTS)])
    with pytest.raises(RunError, match="has 0 in 'id', as an earlier one has"):
        kdcore.run(recipe(precomputed(ids="few", key="id"), data=keep))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"loss": [{"use": "kl", "temperature": 2.0}]}, "cannot give the mass of its unknown ids"),
        ({"rollout": {"use": "student", "max_new_tokens": 4}}, "knows only the data's documents"),
        ({"eval": [{"use": "agreement"}]}, "match them by `key`"),
        ({"teacher": precomputed(path="nowhere.jsonl")}, "nowhere.jsonl"),
        ({"teacher": precomputed(path="some/set")}, "set k"),
    ],
)
@pytest.mark.parametrize("is_cached", [False, True])
def test_what_it_cannot_do_is_an_error_of_the_recipe(more, said, is_cached):
    write([plain(0, TEXTS[0])])
    made = recipe(precomputed(ids="few")) | more
    if is_cached:
        made["teacher"] = {"use": "cached", "kind": "topk", "teacher": made["teacher"]}
    with pytest.raises((RecipeError, RunError), match=said):
        kdcore.run(made)
