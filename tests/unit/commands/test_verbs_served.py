"""From a server's address to a recipe, a page on it, and a store: against the stub."""

import json
from pathlib import Path

import pytest
import tiny
import tomli
from stub_server import Stub, serving
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from kdcore.cli.main import app

pytestmark = pytest.mark.slow

OURS = tiny.byte_tokenizer()
THEIRS = tiny.byte_tokenizer(["who is fox? it is fox number 7, of quite other words"], 300)


def call(*words, code=0):
    done = CliRunner().invoke(app, list(words), catch_exceptions=False, env={"COLUMNS": "160"})
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def stub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "student", tokenizer=OURS)
    tiny.save(tmp_path / "theirs", tokenizer=THEIRS)
    lines = [{"prompt": f"who is {n}?", "completion": f"it is fox number {n}"} for n in range(30)]
    Path("chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = Stub(AutoModelForCausalLM.from_pretrained("theirs").eval(), name="big", length=513)
    made.root = str(tmp_path / "theirs")
    return made


def begin(url, *more, code=0):
    words = ("--teacher", url, "--student", "student", "--data", "chat.jsonl", *more)
    return call("new", "recipe", "mine.toml", *words, code=code)


def test_an_address_becomes_a_recipe_a_page_and_a_store(stub):
    with serving(stub) as url:
        begin(url)
        table = tomli.loads(Path("mine.toml").read_text())
        cached = table["teacher"]
        served = cached["teacher"]["teacher"]
        uses = [each["use"] for each in (cached, cached["teacher"], served)]
        assert uses == ["cached", "aligned", "served"]
        assert (served["url"], served["model"], served["k"]) == (url, "big", 20)
        assert served["tokenizer"] == stub.root
        assert "no errors" in call("check", "mine.toml")
        page = call("doctor", "mine.toml")
        assert "give_up_after" not in page
        assert f"url='{url}'" in page and "model='big'" in page and "answers" in page
        assert "tokens a second" in page and "it knows" in page
        assert "whole data" in page and "on disk" in page
        call("cache", "build", "mine.toml")
        asked = len(stub.asked)
    page = call("doctor", "mine.toml")  # the run does not need the server any more
    assert "note: there is no answer from" in page and "runs/caches has all" in page
    call("run", "mine.toml", "--set", "train.steps=2", "--set", "eval=[]", "--set", "train.batch=2")
    assert len(stub.asked) == asked


def test_a_server_that_is_gone_is_a_sentence_of_the_page(stub):
    with serving(stub) as url:
        begin(url)
    page = call("doctor", "mine.toml", code=2)
    assert f"there is no answer from {url}" in page.replace("\n", " ").replace("  ", " ")


def test_a_fresh_student_has_the_served_tokenizer(stub):
    with serving(stub) as url:
        words = ("--teacher", url, "--student", "1M", "--data", "chat.jsonl")
        call("new", "recipe", "mine.toml", *words)
    table = tomli.loads(Path("mine.toml").read_text())
    assert table["tokenizer"]["model"] == stub.root


def test_a_server_of_the_other_kind_is_found_out(stub):
    stub.lacks = ("/v1/completions",)
    with serving(stub) as url:
        begin(url)
        assert '\napi = "sglang"' in Path("mine.toml").read_text()
        assert "answers" in call("doctor", "mine.toml")


def refused(*words):
    done = CliRunner().invoke(app, ["new", "recipe", "mine.toml", *words])
    assert done.exit_code != 0 and not Path("mine.toml").exists()
    return str(done.exception)


def test_what_cannot_be_begun_is_a_sentence(stub, monkeypatch):
    monkeypatch.setattr("kdcore.commands.drafts.served_choice._PATIENCE", 0.0)
    models = ("--student", "student", "--data", "chat.jsonl")
    with serving(stub) as url:
        assert f"{url} does not serve 'other'; it serves big" in refused(
            "--teacher", f"{url}#other", *models
        )
        stub.limit = 5
        assert "--max-logprobs 20" in refused("--teacher", url, *models)
        stub.limit, stub.root = 20, "nowhere/at-all"
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert "type --tokenizer FOLDER" in refused("--teacher", url, *models)
        begin(url, "--tokenizer", "theirs")
    Path("mine.toml").unlink()
    assert f"there is no answer from {url}" in refused("--teacher", url, *models)
