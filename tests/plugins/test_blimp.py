"""Minimal pairs: sums against each sentence alone, what counts as right, and files that are bad."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import engine
import given
import pytest
import tiny
import torch
from kdcore_blimp import Blimp, kdcore_evals, rows_of
from kdcore_blimp.pairs import read_pairs
from pydantic import ValidationError
from standin_hub import serving
from tokenizers.processors import TemplateProcessing

from kdcore import RunError

PAIRS = [
    ("The owl asked the fox.", "The owl ask the fox."),
    ("She had a kite near the river, and she loved to fly it!", "She had kite."),
    ("Ruby is sad.", "Ruby are sad, and there was a small fox named Ruby near the river."),
    ("“Why?” asked the naïve owl.", "“Why?” ask the naïve owl."),
]
TOKENIZERS = {"bos": tiny.llama_tokenizer, "eos": tiny.byte_tokenizer}


def lay(folder, name="agreement", pairs=PAIRS):
    """A file of pairs, with a key more than is needed."""
    folder.mkdir(exist_ok=True)
    records = [{"sentence_good": good, "sentence_bad": bad, "UID": name} for good, bad in pairs]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


class StubRun:
    """Gives each row the sum that is listed for it."""

    def __init__(self, *sums):
        self.sums, self.rows = list(sums), []
        self.tokenizer, self.data = tiny.byte_tokenizer(), tiny.Lines()

    def log_likelihoods(self, rows):
        self.rows.append(rows)
        return self.sums


def real_run(model, tokenizer):
    made = engine.trainer(
        model, given.packed_rows(), [engine.term()], vocabulary=len(tokenizer)
    ).run
    made.tokenizer = tokenizer
    return made


def alone(model, tokenizer, sentence):
    """A sentence's log-probability from the whole model's logits, with nothing beside it."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = tokenizer.encode(sentence, add_special_tokens=False)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[start, *ids]])).logits[0, :-1]
    return sum(logits.log_softmax(-1)[place, id].item() for place, id in enumerate(ids))


@pytest.mark.parametrize("start", TOKENIZERS)
@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_sums_are_those_of_each_sentence_alone(kind, start, side):
    tokenizer = TOKENIZERS[start]()
    tokenizer.padding_side = side
    model = given.model(kind, vocabulary=len(tokenizer))
    found = real_run(model, tokenizer).log_likelihoods(rows_of(PAIRS, tokenizer))
    expected = [alone(model, tokenizer, sentence) for pair in PAIRS for sentence in pair]
    assert found == pytest.approx(expected, abs=1e-4)


def test_accuracies_are_those_of_each_sentence_alone(tmp_path):
    tokenizer = tiny.byte_tokenizer()
    model = given.model(vocabulary=len(tokenizer))
    lay(tmp_path, "one", PAIRS[:3])
    lay(tmp_path, "two", PAIRS[3:])
    scores = Blimp(path=str(tmp_path)).measure(real_run(model, tokenizer))
    right = [alone(model, tokenizer, good) > alone(model, tokenizer, bad) for good, bad in PAIRS]
    assert scores == pytest.approx(
        {
            "blimp": (sum(right[:3]) / 3 + right[3]) / 2,
            "blimp/one": sum(right[:3]) / 3,
            "blimp/two": float(right[3]),
        }
    )


def test_a_row_is_a_start_and_the_sentence():
    tokenizer = tiny.llama_tokenizer()
    good, _ = rows_of(PAIRS[:1], tokenizer)
    ids = tokenizer.encode(PAIRS[0][0], add_special_tokens=False)
    assert good == {"input_ids": [tokenizer.bos_token_id, *ids], "labels": [-100, *ids]}
    tokenizer = tiny.byte_tokenizer()
    good, bad = rows_of(PAIRS[:1], tokenizer, " ")
    assert good["input_ids"] == [tokenizer.eos_token_id, *tokenizer.encode(" " + PAIRS[0][0])]
    assert tokenizer.decode(bad["labels"][1:]) == " " + PAIRS[0][1]


def test_sentences_begin_as_the_documents_of_the_run(tmp_path):
    tokenizer, run = tiny.llama_tokenizer(), StubRun(*[-1.0, -2.0] * 4)
    lay(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> <s> $A", special_tokens=[("<s>", 1), ("<unk>", 0)]
    )
    run.tokenizer = tokenizer
    for bos, start in (("auto", [0, 1]), (False, [tokenizer.eos_token_id])):
        run.data = tiny.Lines(bos=bos)
        Blimp(path=str(tmp_path)).measure(run)
        ids, labels = run.rows[-1][0]["input_ids"], run.rows[-1][0]["labels"]
        assert ids[: len(start)] == start
        assert labels == [*[-100] * len(start), *ids[len(start) :]]


def test_ties_and_what_is_no_number_are_wrong(tmp_path):
    lay(tmp_path)
    run = StubRun(-1.0, -2.0, -2.0, -2.0, float("nan"), -1.0, -3.0, -2.0)
    assert Blimp(path=str(tmp_path)).measure(run) == {"blimp": 0.25, "blimp/agreement": 0.25}


def test_paradigms_weigh_the_same_whatever_their_sizes(tmp_path):
    lay(tmp_path, "large", PAIRS[:3])
    lay(tmp_path, "small", PAIRS[3:])
    run = StubRun(-1.0, -2.0, -1.0, -2.0, -1.0, -2.0, -3.0, -2.0)
    assert Blimp(path=str(tmp_path)).measure(run)["blimp"] == 0.5


def test_files_are_read_once_before_the_training(tmp_path):
    file = lay(tmp_path)
    blimp, run = Blimp(path=str(file)), StubRun(*[0.0] * 8)
    blimp.kdcore_run_start()
    file.unlink()
    assert blimp.measure(run) == blimp.measure(run) == {"blimp": 0.0, "blimp/agreement": 0.0}


def test_paradigms_and_pairs_are_chosen(tmp_path):
    for name in ("b", "a", "c", ".hidden"):
        lay(tmp_path, name)
    assert list(read_pairs(str(tmp_path), None, None)) == ["a", "b", "c"]
    assert read_pairs(str(tmp_path), ["c", "a", "c"], 2) == {"c": PAIRS[:2], "a": PAIRS[:2]}
    assert read_pairs(str(tmp_path / "b.jsonl"), None, 9) == {"b": PAIRS}


GOOD = '{"sentence_good": "Yes.", "sentence_bad": "No."}'


@pytest.mark.parametrize(
    "lines, said",
    [
        ([GOOD, "", "{"], "line 3 is not JSON: Expecting property name"),
        ([GOOD, "[1]"], "line 2 is not a JSON object with 'sentence_good' and 'sentence_bad'"),
        ([GOOD, '{"sentence_good": "Yes."}'], "line 2 has no sentence under 'sentence_bad'"),
        (['{"sentence_good": " ", "sentence_bad": ""}'], "line 1 has no sentence under"),
        (['{"sentence_good": 1, "sentence_bad": ""}'], "line 1 has no sentence under"),
        ([""], "has no pair of sentences"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, lines, said):
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError) as raised:
        Blimp(path=str(tmp_path)).kdcore_run_start()
    assert str(raised.value).startswith(f"{file}") and said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(GOOD.encode() + b"\n\xff\n")
    with pytest.raises(RunError, match=r"bad\.jsonl is not UTF-8 at byte"):
        read_pairs(str(tmp_path), None, None)


def faults(**options):
    return list(Blimp(**options).faults(None))


def test_errors_are_reported_without_reading(tmp_path):
    folder = tmp_path / "pairs"
    lay(folder, "agreement", [])
    assert faults(path=str(folder)) == []
    assert faults() == faults(path="owner/name", paradigms=["any"]) == []
    (said,) = faults(path=str(folder), paradigms=["agrement"])
    assert said.endswith("has no paradigm 'agrement'; did you mean 'agreement'?")
    for path in (str(tmp_path / "absent"), "absent.jsonl", "a/b/c"):
        assert faults(path=path) == [f"cannot read {path!r}: there is no such file or folder"]
    (said,) = faults(path=str(tmp_path))
    assert said.endswith("has no .jsonl file; each should hold a paradigm")


def test_a_tokenizer_without_a_start():
    bare = SimpleNamespace(bos_token_id=None, eos_token_id=None)
    with pytest.raises(RunError, match="needs a tokenizer with a bos or an eos token"):
        rows_of(PAIRS, bare)


def test_a_sentence_without_a_token_is_not_the_likeliest():
    class Deaf:
        bos_token_id, eos_token_id = 0, None

        def __call__(self, sentences, add_special_tokens):
            return {"input_ids": [[] for _ in sentences]}

    with pytest.raises(RunError, match="has no token for 'The owl asked the fox"):
        rows_of(PAIRS, Deaf())


@pytest.mark.parametrize("options", [{"paradigms": []}, {"pairs": 0}])
def test_options_out_of_range(options):
    with pytest.raises(ValidationError):
        Blimp(**options)


def test_hook_kdcore_evals():
    assert kdcore_evals() == [Blimp]
    assert not Blimp.always and not Blimp.needs_teacher


CARD = """---
configs:
- config_name: one
  data_files:
  - {split: train, path: one/train-*}
- config_name: two
  data_files:
  - {split: train, path: two/train-*}
---
"""
ASK = """
from kdcore import RunError
from kdcore_blimp.pairs import read_pairs
try:
    print(read_pairs({path!r}, {paradigms!r}, {pairs!r}))
except RunError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    from datasets import Dataset

    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    for name, card in {"pairs": CARD, "bare": None}.items():
        folder = root / "datasets" / "owner" / name
        for n, config in enumerate(("one", "two")):
            path = folder / config / "train-00000-of-00001.parquet"
            path.parent.mkdir(parents=True)
            good, bad = zip(*PAIRS[n : n + 2], strict=True)
            Dataset.from_dict({"sentence_good": good, "sentence_bad": bad}).to_parquet(path)
        if card:
            (folder / "README.md").write_text(card)
    with serving(root) as (url, _):
        hub = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        hub |= {"HF_HUB_DISABLE_XET": "1", "HF_DATASETS_CACHE": str(home / "datasets")}

        def ask(path="owner/pairs", paradigms=None, pairs=None, offline="0"):
            command = [sys.executable, "-c", ASK.format(**locals())]
            environment = {**os.environ, **hub, "HF_HUB_OFFLINE": offline}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        yield ask


@pytest.mark.slow
def test_configs_on_the_hub_are_paradigms(ask):
    every = str({"one": PAIRS[:2], "two": PAIRS[1:3]})
    assert ask() == every
    assert ask(offline="1") == every
    assert ask(paradigms=["two"], pairs=1) == str({"two": PAIRS[1:2]})
    assert ask(paradigms=["tow"]) == "owner/pairs has no paradigm 'tow'; did you mean 'two'?"


@pytest.mark.slow
def test_what_the_hub_lacks_is_reported(ask):
    said = ask(path="owner/absent")
    assert said.startswith("cannot load the pairs of owner/absent: neither a file or folder here")
    said = ask(path="owner/absent", offline="1")
    assert "the hub cannot be reached; connect, or set path to a folder of JSONL files" in said
    assert ask(path="owner/bare", paradigms=["one"]) == "owner/bare has no paradigm 'one'"
