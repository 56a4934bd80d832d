"""Streamed training rows: every document once an epoch, exact after a resume, little held."""

import json

import pytest
import tiny
from kdcore_text import Text

from kdcore import Data, PluginError, RunError, component, stream_texts
from kdcore.data.given import GivenStream
from kdcore.data.sampler import StreamedRows
from kdcore.data.streaming import Place

pytestmark = pytest.mark.slow

TOKENIZER = tiny.byte_tokenizer()
TEXTS = [f"{n:03d}" * (1 + n % 7) for n in range(400)]


@component
class Counted(Data):
    """Texts, each noted when it is read."""

    name = "counted"

    def __post_init__(self):
        self.read = 0

    def texts(self, split):
        for text in TEXTS:
            self.read += 1
            yield text


@pytest.fixture(params=["plain", "parquet"])
def data(request, tmp_path):
    if request.param == "plain":
        path = tmp_path / "train.txt"
        path.write_text("\n".join(TEXTS))
        return lambda: Text(
            path=str(path), separator="\n", validation_share=0.1, streaming=True, block=64
        )
    from datasets import Dataset

    for n in range(2):
        part = Dataset.from_dict({"text": TEXTS[n * 200 : (n + 1) * 200]})
        part.to_parquet(str(tmp_path / f"train-{n}.parquet"))
    paths = [str(tmp_path / f"train-{n}.parquet") for n in range(2)]
    return lambda: Text(path=paths, validation_share=0.1, streaming=True, block=64)


def rows_of(data, *, window=8, **options):
    settings = {"batch": 4, "seed": 0} | options
    return StreamedRows(lambda _: stream_texts(data, "train", TOKENIZER, window=window), **settings)


def texts_of(rows):
    """The documents in rows, as text."""
    found = []
    for row in rows:
        for document in dict.fromkeys(row["document"].tolist()):
            found.append(TOKENIZER.decode(row["input_ids"][row["document"] == document][:-1]))
    return found


def as_lists(rows):
    return [{key: values.tolist() for key, values in row.items()} for row in rows]


def test_an_epoch_has_each_document_once_and_the_next_another_order(data):
    stream = stream_texts(data(), "train", TOKENIZER, window=8)
    count = len(list(stream))
    rows = rows_of(data(), batch=count)
    first, second = texts_of(rows.step(1)), texts_of(rows.step(2))
    assert sorted(first) == sorted(second) == sorted(data().texts("train"))
    assert first != second


def test_held_out_documents_are_not_trained_on(data):
    train, held_out = (list(data().texts(split)) for split in ("train", "validation"))
    assert sorted([*train, *held_out]) == sorted(TEXTS)
    assert len(held_out) == 40


@pytest.mark.parametrize("step", [1, 3, 9, 30, 60])
def test_a_run_resumes_where_it_was(data, step):
    whole = rows_of(data())
    seen = [as_lists(whole.step(n)) for n in range(1, step + 4)]
    state = json.loads(json.dumps(whole.state_dict(step)))
    again = rows_of(data())
    again.load_state_dict(state)
    assert [as_lists(again.step(n)) for n in range(step + 1, step + 4)] == seen[step:]
    fresh = rows_of(data())
    assert as_lists(fresh.step(step)) == seen[step - 1]
    assert as_lists(fresh.step(1)) == seen[0]  # and back


def test_processes_take_the_rows_of_one_process_and_workers_change_nothing(data):
    whole = rows_of(data(), batch=5)
    parts = [rows_of(data(), batch=5, process=n, processes=2, workers=1) for n in range(2)]
    for step in range(1, 20):
        taken = [row for part in parts for row in part.step(step)]
        assert as_lists(taken) == as_lists(whole.step(step))


def test_no_more_than_a_window_is_read_ahead(monkeypatch):
    monkeypatch.setattr("kdcore.data.tokenized._CALL", 64)
    data = Counted(block=32)
    rows = rows_of(data, window=2, batch=1)
    rows.step(1)
    assert data.read < 40


def test_documents_have_the_same_numbers_after_a_resume(data):
    rows = list(stream_texts(data(), "train", TOKENIZER, window=8))
    documents = {n for row in rows for n in row["document"].tolist()}
    assert documents == set(range(len(list(data().texts("train")))))


def test_rows_that_data_hands_over_one_by_one_are_a_stream_too():
    given = [{"input_ids": [n, n + 1]} for n in range(10)]
    stream = GivenStream(lambda: iter(given), "train", "print", "data 'mine'")
    assert [row["input_ids"].tolist() for row in stream] == [[n, n + 1] for n in range(10)]
    assert [row["document"][0] for row in stream] == list(range(10))
    ((_, rest),) = stream.windows(Place(read=7, laid=7))
    assert [row["document"][0] for row in rest] == [7, 8, 9]
    broken = GivenStream(lambda: iter([{"ids": [1]}]), "train", "print", "data 'mine'")
    with pytest.raises(PluginError, match="data 'mine': row 0 of 'train' has the key 'ids'"):
        list(broken)


def test_what_needs_all_rows_is_reported():
    stream = stream_texts(Counted(), "train", TOKENIZER)
    assert len(stream) == 0
    with pytest.raises(RunError, match="streamed"):
        stream.row(0)


def test_nothing_to_train_on_is_reported():
    nothing = GivenStream(lambda: iter([]), "train", "print", "data 'mine'")
    with pytest.raises(RunError, match="nothing to train on"):
        StreamedRows(lambda _: nothing, 4, 0).step(1)


RECIPE = """
[student.config]
model_type = "llama"
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
[tokenizer]
use = "bpe"
vocab_size = 257
[data]
use = "text"
path = "{path}"
separator = "\\n"
validation_share = 0.1
streaming = true
buffer = 8
block = 64
[[loss]]
use = "ce"
[train]
lr = 1e-2
batch = 4
eval_rows = 8
{train}
"""


def recipe_of(folder, train):
    path = folder / "train.txt"
    path.write_text("\n".join(TEXTS))
    recipe = folder / "streamed.toml"
    recipe.write_text(RECIPE.format(path=path, train=train))
    return recipe


def test_a_streamed_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import read_recipe
    from kdcore.runs.runner import RunRequest, run_recipe
    from kdcore.training.trainer import Trainer

    recipe = recipe_of(tmp_path, "steps = 12\nsave_every = 5\neval_every = 6")
    host = PluginManager(off=["panel"])

    def run(out):
        (folder,) = run_recipe(read_recipe(str(recipe), host), host, RunRequest(out=tmp_path / out))
        return folder

    whole = run("whole")
    plain = Trainer.step

    def stops(self, step):
        if step == 9:
            raise RunError("stopped")
        return plain(self, step)

    monkeypatch.setattr(Trainer, "step", stops)
    with pytest.raises(RunError, match="stopped"):
        run("parts")
    monkeypatch.setattr(Trainer, "step", plain)
    parts = run("parts")
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (whole, parts))
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    "train, said",
    [
        ("epochs = 1", "set train.steps instead of epochs"),
        ("tokens = 100", "set train.steps instead of epochs"),
    ],
)
def test_options_that_need_a_length_are_errors(tmp_path, train, said):
    from kdcore import UsageError
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import read_recipe

    with pytest.raises(UsageError, match=said):
        read_recipe(str(recipe_of(tmp_path, train)), PluginManager())


def test_shares_and_caches_of_a_stream_are_errors(tmp_path):
    from kdcore import UsageError
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import read_recipe

    recipe = recipe_of(tmp_path, "steps = 3")
    sets = ["data.fraction=0.5"]
    with pytest.raises(UsageError, match="shares of documents that a stream does not count"):
        read_recipe(str(recipe), PluginManager(), sets=sets)
    sets = ['teacher={use="cached", teacher={use="hf", model="m"}, kind="topk"}', "loss.1.use=kl"]
    with pytest.raises(UsageError, match="data 'text' is streamed, so it cannot be cached"):
        read_recipe(str(recipe), PluginManager(), sets=sets)
