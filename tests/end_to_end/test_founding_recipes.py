"""The shipped recipes of the founding systems against a stand-in hub.

Changed are `train.steps` and the sizes of what is trained from scratch, nothing else: ids, columns,
splits, files and defaults are those of the recipes. `rho_qwen` has a file of its own.
"""

import json
import math

import pytest
from founding_hub import (
    hub_of,
    lay_data,
    lay_llama2_tokenizer,
    lay_llama3,
    lay_qwen,
    metrics,
    qwen_tokenizer,
    sentences,
)

pytestmark = pytest.mark.slow

DIVERGENCES = ("kl", "reverse-kl", "skew-kl", "skew-reverse-kl")
ALPACA = "tatsu-lab/alpaca"


def alpaca(count):
    """Its columns; the column `text` is what a reader must not take for the record."""
    asked, given = (sentences(count, seed, longest=12) for seed in range(2))
    said = sentences(count, 2, longest=3)  # each token that is learned takes 152,000 logits
    given = [text if n % 3 else "" for n, text in enumerate(given)]
    return {"instruction": asked, "input": given, "output": said, "text": ["wrong"] * count}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Heads as wide as the real ones: the teacher's is the wider one."""
    root, ids = tmp_path_factory.mktemp("hub"), qwen_tokenizer(chat=True)
    lay_qwen(root, "Qwen2.5-7B-Instruct", 152_064, ids)
    lay_qwen(root, "Qwen2.5-0.5B-Instruct", 151_936, ids)
    lay_data(root, ALPACA, {"train": alpaca(40)})
    with hub_of(root, tmp_path_factory.mktemp("home")) as hub:
        yield hub


def last(folder):
    """A run's last line of training, and of its evaluations."""
    trained, evaluated = metrics(folder)
    return trained[-1], evaluated[-1]


def test_qwen_kl_sft_with_each_divergence(qwen):
    one = f"stage.student.loss.kl.use={','.join(DIVERGENCES)}"
    qwen.run("qwen_kl_sft", "train.steps=1", each=[one])
    assert "151,665 shared ids" in qwen.said
    runs = qwen.home / "runs"
    (teacher,) = runs.glob("qwen_kl_sft.teacher-*")
    assert not (teacher / "final" / "adapter_config.json").exists()
    students = [*runs.glob("qwen_kl_sft.student-*")]
    found = {}
    for folder in students:
        trained, evaluated = last(folder)
        (divergence,) = {key[5:] for key in trained if key.startswith("loss/")} - {"ce"}
        found[divergence] = trained["loss"]
        assert trained[f"loss/{divergence}"] >= 0
        assert {"eval/agreement", "eval/kl", "eval/rouge_l"} <= evaluated.keys()
        assert [*folder.rglob("events.out.tfevents*")]
    assert {*found} == {*DIVERGENCES} and len({*found.values()}) == 4


@pytest.mark.parametrize("regime", ["only_kl", "finetune_first", "ce"])
def test_the_other_regimes(qwen, regime):
    made = qwen.run(f"qwen_kl_sft_{regime}", "train.steps=1")
    trained, evaluated = last(made["student"])
    terms = {key for key in trained if key.startswith("loss/")}
    assert terms == ({"loss/ce"} if regime == "ce" else {"loss/kl"})
    assert {"eval/agreement", "eval/rouge_l"} <= evaluated.keys()
    assert ("finetuned" in made) == (regime == "finetune_first")


def test_a_student_with_the_wider_head(tmp_path_factory):
    root, ids = tmp_path_factory.mktemp("hub"), qwen_tokenizer(chat=True)
    lay_qwen(root, "Qwen2.5-3B-Instruct", 151_936, ids)
    lay_qwen(root, "Qwen2.5-0.5B-Instruct", 152_064, ids)
    lay_data(root, ALPACA, {"train": alpaca(40)})
    with hub_of(root, tmp_path_factory.mktemp("home")) as hub:
        smaller = "stage.teacher.student.model=Qwen/Qwen2.5-3B-Instruct"
        made = hub.run("qwen_kl_sft", "train.steps=1", smaller)
        assert "151,665 shared ids" in hub.said
        assert last(made["student"])[1]["eval/kl"] > 0


STORIES = {1: "roneneldan/TinyStories", 2: "noanabeshima/TinyStoriesV2"}
SMALL_LLAMA = [
    f"student.config.{key}={size}"
    for key, size in {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }.items()
]


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    lay_llama2_tokenizer(root)
    for seed, name in STORIES.items():
        texts = {split: sentences(n, seed) for split, n in (("train", 200), ("validation", 20))}
        lay_data(root, name, {split: {"text": each} for split, each in texts.items()})
    with hub_of(root, tmp_path_factory.mktemp("home")) as hub:
        yield hub


def test_tinystories_llama(stories):
    often = ["train.steps=6", "train.eval_every=3", "train.save_every=2"]  # for each 1,000
    folder = stories.run("tinystories_llama", *often, *SMALL_LLAMA)[""]
    assert "train: 20 documents" in stories.said  # the first tenth
    _, evaluated = metrics(folder)
    assert [line["step"] for line in evaluated] == [0, 3, 6]
    for line in evaluated:
        assert line["eval/sample/1"].startswith("Once upon a time, ")
        assert "named Peter Rabbit." in line["eval/sample/2"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir())[-1].endswith("6")
    assert len([*(folder / "checkpoints").iterdir()]) == 2


def test_the_first_version_of_tinystories(stories):
    stories.asked.clear()
    folder = stories.run("tinystories_llama", "data.version=1", "train.steps=2", *SMALL_LLAMA)[""]
    assert last(folder)[1]["step"] == 2
    data = {
        line.split("/datasets/")[1]
        for line in stories.asked
        if "/resolve/" in line and "/datasets/" in line
    }
    assert all(name.startswith(STORIES[1]) for name in data) and data


SOURCES = ("bnc_spoken", "childes", "gutenberg", "open_subtitles", "simple_wiki", "switchboard")
SMALL_STAGES = [
    "stage.gpt2.student.config={model_type='gpt2', n_embd=32, n_layer=1, n_head=2}",
    *(
        f"stage.{stage}.student.config={{model_type='llama', hidden_size=32, intermediate_size=64, "
        "num_hidden_layers=1, num_attention_heads=2}"
        for stage in ("llama", "student")
    ),
]


@pytest.fixture(scope="module")
def babylm(tmp_path_factory):
    """A home with the folders that the recipe names."""
    home = tmp_path_factory.mktemp("home")
    for folder, ending, count in (("babylm_10M", "train", 120), ("babylm_dev", "dev", 30)):
        (home / "data" / folder).mkdir(parents=True)
        for seed, source in enumerate(SOURCES):
            path = home / "data" / folder / f"{source}.{ending}"
            path.write_text("\n\n".join(sentences(count, seed + count)))
    root = tmp_path_factory.mktemp("hub")
    lay_llama3(root)
    with hub_of(root, home) as hub:
        yield hub


def test_babyllama(babylm):
    steps = [f"stage.{stage}.train.steps=2" for stage in ("gpt2", "llama", "student")]
    made = babylm.run("babyllama", *steps, *SMALL_STAGES)
    assert {*made} == {"gpt2", "llama", "student"}
    trained, evaluated = last(made["student"])
    assert {"loss/ce", "loss/kl"} <= trained.keys()
    assert evaluated["step"] == 2
    assert not babylm.asked


def test_llama3_babylm(babylm):
    """The student is the recipe's own; what the tokenizer and the head share is the teacher's."""
    few = [f"stage.student.train.{key}" for key in ("steps=1", "batch=1", "eval_rows=2")]
    made = babylm.run("llama3_babylm", *few, *SMALL_STAGES[-1:])
    trained, evaluated = last(made["student"])
    assert {"loss/ce", "loss/kl"} <= trained.keys() and evaluated["step"] == 1
    assert evaluated["eval/nll"] == pytest.approx(math.log(128_256), rel=0.05)
    assert (
        json.loads((made["student"] / "final" / "config.json").read_text())["vocab_size"] == 128_256
    )
