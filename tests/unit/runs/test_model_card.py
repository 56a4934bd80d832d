"""The model card: what the model is and how it was made, and nothing that is nobody's business."""

import json
import math
from types import SimpleNamespace

import pytest
import tiny
import yaml

from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.model_card import model_card

TOKEN = "hf_notATokenOfAnybody123"
RECIPE = """
[data]
use = "tinystories"
block = 32
[student]
model = "{student}"
[train]
steps = 6
lr = 1e-2
[selection]
use = "rho"
keep = 0.4
reference = {{use = "hf", model = "{reference}"}}
[[loss]]
use = "ce"
[[loss]]
use = "kl"
temperature = 2.0
weight = 0.5
[teacher]
use = "hf"
model = "Qwen/Qwen2.5-1.5B"
"""


@pytest.fixture(scope="module")
def host():
    return PluginManager()


def run_of(folder, host, *sets, text=RECIPE, **names):
    """What the card asks of a run."""
    folder.mkdir(exist_ok=True)
    named = {"student": "Qwen/Qwen2.5-0.5B", "reference": "Qwen/Qwen2.5-1.5B"} | names
    (folder / "fox.toml").write_text(text.format(**named))
    recipe = read_recipe(str(folder / "fox.toml"), host, sets=sets)
    (folder / "recipe.toml").write_text(recipe.text)
    (folder / "env.json").write_text(json.dumps({"packages": {"kdcore": "0.1.0", "torch": "2.8"}}))
    return SimpleNamespace(
        recipe=recipe.build(),
        folder=folder,
        steps=6,
        batch=8,
        best=None,
        tokens=12345,
        teacher=recipe.build().teacher,
        student=object(),
        objective="loss = 1 * mean_kept(CE(q(1), y))\n     + 0.5 * mean_kept(4 * KL(p(2), q(2)))",
        scores={"nll": 1.23456789, "perplexity": math.inf, "sample/1": "Once upon"},
    )


def parts(card):
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_is_what_the_hub_reads(tmp_path, host):
    front, _ = parts(model_card(run_of(tmp_path, host)))
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["kdcore", "distillation"],
        "base_model": "Qwen/Qwen2.5-0.5B",
        "datasets": ["noanabeshima/TinyStoriesV2"],
    }


def test_local_models_and_data_are_no_names_on_the_hub(tmp_path, host, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "models" / "fox")
    (tmp_path / "data.d").mkdir()
    (tmp_path / "data.d" / "texts").write_text("one\n\ntwo\n")
    sets = (
        "data={use='text', path=['data.d/texts', 'a/b.txt', 'Owner/corpus'], validation='x.txt'}",
    )
    front, _ = parts(model_card(run_of(tmp_path, host, *sets, student="models/fox")))
    assert "base_model" not in front
    assert front["datasets"] == ["Owner/corpus"]


def test_a_student_that_began_as_another_runs(tmp_path, host):
    first = tmp_path / "fox.first-12345678"
    card = model_card(run_of(first, host))
    (first / "final").mkdir()
    (first / "final" / "README.md").write_text(card)
    run = run_of(tmp_path / "second", host, student=str(first / "final"))
    front, text = parts(model_card(run))
    assert front["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert 'model = "@first"' in text


def test_what_it_says(tmp_path, host):
    run = run_of(tmp_path, host)
    _, text = parts(model_card(run))
    assert "# fox\n" in text and "6 steps of 8 rows, 12,345 tokens" in text
    assert f"```\n{run.objective}\n```" in text
    assert "- `mean_kept`: the mean over those tokens that the selection keeps" in text
    assert "| nll | 1.23457 |" in text and "| perplexity | inf |" in text
    assert "Once upon" not in text
    assert f"```toml\n{run.folder.joinpath('recipe.toml').read_text().strip()}\n```" in text
    assert "kdcore 0.1.0, torch 2.8" in text
    assert "AutoModelForCausalLM.from_pretrained" in text


def test_without_a_teacher_and_evals(tmp_path, host):
    text = '[data]\nuse = "stories"\n[student]\nmodel = "{student}"\n[[loss]]\nuse = "ce"\n'
    run = run_of(tmp_path, host, text=text + "[train]\nlr = 1\nsteps = 1\n")
    run.scores = {}
    front, text = parts(model_card(run))
    assert front["tags"] == ["kdcore"] and "datasets" not in front
    assert "## Evaluations\n\nNone were made." in text


def test_no_secret_no_user_and_no_place(tmp_path, host, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    comment = "# alice's own: /scratch/alice/notes.txt\n"
    run = run_of(
        tmp_path,
        host,
        f"data.path='/home/alice/{TOKEN}/texts'",
        "data.validation='https://alice:fox@example.org/x?token=fox'",
        reference="/mnt/alice/runs/fox.teacher-12345678/final",
        text=comment + RECIPE,
    )
    card = model_card(run)
    for secret in (TOKEN, "/home", "/mnt", "/scratch", ":fox", "=fox", str(tmp_path)):
        assert secret not in card
    assert '"@teacher"' in card and 'path = "~/***/texts"' in card
    assert "/alice" not in card


def test_long_options_are_no_names_on_the_hub():
    """A name of a file may have 255 characters, and asking for a longer one is an error."""
    from kdcore_sft import Sft

    data = Sft(path="owner/data", validation_share=0.5, template="{{ messages[0].content }}" * 20)
    assert list(data.names_on_hub()) == ["owner/data"]


@pytest.mark.parametrize("path", ["data/a.TSV", "data/a.ndjson", "data/a.arrow", "data/a.txt.zst"])
def test_files_are_no_names_on_the_hub(path):
    from kdcore_text import Text

    assert list(Text(path=path).names_on_hub()) == []
