"""A server that fails, and a build that is stopped: the same bits, and nothing is asked twice."""

import importlib.util
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import tiny
import tomli_w
from stub_server import Stub, serving
from typer.testing import CliRunner

from kdcore.cli.main import app
from kdcore.errors import Interrupted

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness" / "served_failures.py"
QUICK = ["reset", "half", "down", 429, 500, 503]
TOKENIZER = tiny.byte_tokenizer()


@pytest.fixture(scope="module")
def failures():
    spec = importlib.util.spec_from_file_location("served_failures", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(12))
def test_failures_end_in_the_same_bits_or_a_sentence(failures, seed):
    name, fault = failures.trial(1000 + seed, QUICK)
    assert not fault, f"{name}: {fault}"


def test_every_failure_that_lasts_ends_in_its_sentence(failures):
    for seed, ending in enumerate(failures.ENDING):
        assert failures.trial(seed, QUICK, ending) == (ending, "")


class Killing(Stub):
    """Sends its own process a signal at some requests."""

    def __init__(self, model, at):
        super().__init__(model)
        self.at = {*at}

    def _count(self, answer):
        if len(self.asked) in self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer

    def completions(self, body):
        return self._count(super().completions(body))

    def chat(self, body):
        return self._count(super().chat(body))


@pytest.fixture
def killing(monkeypatch):
    paths = __import__("stub_server").PATHS
    monkeypatch.setitem(paths, "/v1/completions", lambda stub, body: stub.completions(body))
    monkeypatch.setitem(paths, "/v1/chat/completions", lambda stub, body: stub.chat(body))


def built_to_its_end():
    """The same command until it is done; how often it was interrupted."""
    for times in range(100):
        done = CliRunner().invoke(app, ["cache", "build", "r.toml"])
        if done.exit_code == 0:
            return times
        assert isinstance(done.exception, Interrupted), done.output
        assert done.exception.exit_code == 143
    raise AssertionError("it never ends")


CONFIG = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
CONFIG |= {"num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.slow
def test_a_build_that_is_stopped_twenty_times_asks_nothing_twice(tmp_path, monkeypatch, killing):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model", tokenizer=TOKENIZER)
    texts = "\n\n".join(f"fox number {n} said {n * n} and went home" for n in range(240))
    Path("texts.txt").write_text(texts)
    stub = Killing(tiny.model(vocabulary=len(TOKENIZER)).eval(), range(9, 400, 12))
    with serving(stub) as url:
        served = {"use": "served", "url": url, "model": "tiny", "k": 5, "concurrency": 3}
        recipe = {
            "student": {"config": CONFIG},
            "tokenizer": {"use": "hf", "model": "model"},
            "data": {"use": "text", "path": "texts.txt", "block": 64, "validation_share": 0.05},
            "teacher": {"use": "cached", "kind": "topk", "teacher": served},
            "loss": [{"use": "kl"}],
            "train": {"lr": 1e-3, "steps": 1, "batch": 1},
        }
        Path("r.toml").write_text(tomli_w.dumps(recipe))
        assert built_to_its_end() >= 20
    asked = Counter(tuple(body["prompt"]) for path, body in stub.asked if path == "/v1/completions")
    (probe, _), *others = asked.most_common()
    assert len(probe) > 40  # the fixed text, at each start
    assert len(others) == 228 and {times for _, times in others} == {1}


class Ending(Stub):
    """Kills the process that asks, in the middle of some requests."""

    def __init__(self, model):
        super().__init__(model)
        self.child, self.lost = 0, []

    def completions(self, body):
        found = super().completions(body)
        if self.child and len(self.asked) % 12 == 0 and len(self.lost) < 20:
            self.lost.append(tuple(body["prompt"]))
            os.kill(self.child, signal.SIGKILL)
        return found


def forked(stub, *words):
    """The command in a process of its own; its exit code, negative where a signal ended it."""
    stub.child = os.fork()
    if not stub.child:
        code = 9
        try:
            code = CliRunner().invoke(app, list(words)).exit_code
        finally:
            os._exit(code)
    _, status = os.waitpid(stub.child, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.slow
def test_a_build_that_is_killed_twenty_times_asks_twice_what_was_under_way_only(
    tmp_path, monkeypatch, killing
):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model", tokenizer=TOKENIZER)
    texts = [{"text": f"fox number {n} said {n * n} and went home"} for n in range(240)]
    Path("texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    Path("few.jsonl").write_text(json.dumps({"text": "one fox"}) + "\n" + json.dumps(texts[0]))
    stub = Ending(tiny.model(vocabulary=len(TOKENIZER)).eval())
    with serving(stub) as url:
        served = {"use": "served", "url": url, "model": "tiny", "k": 5}
        recipe = {
            "student": {"config": CONFIG},
            "tokenizer": {"use": "hf", "model": "model"},
            "data": {"use": "text", "path": "texts.jsonl", "block": 64, "validation_share": 0.05}
            | {"rows": "one"},
            "teacher": {"use": "cached", "kind": "topk", "teacher": served},
            "loss": [{"use": "kl"}],
            "train": {"lr": 1e-3, "steps": 1, "batch": 1},
        }
        Path("r.toml").write_text(tomli_w.dumps(recipe))
        few = ("--set", "data.path=few.jsonl", "--out", "elsewhere")  # forks have its imports
        assert CliRunner().invoke(app, ["cache", "build", "r.toml", *few]).exit_code == 0
        stub.asked.clear()
        codes = [forked(stub, "cache", "build", "r.toml") for _ in range(20)]
        assert {*codes} == {-signal.SIGKILL}
        assert forked(stub, "cache", "build", "r.toml") == 0
    asked = Counter(tuple(body["prompt"]) for path, body in stub.asked if path == "/v1/completions")
    (probe, _), *others = asked.most_common()
    assert len(probe) > 40  # the fixed text, at each start
    lost = Counter(stub.lost)
    assert len(others) == 228
    assert all(times == 1 + lost[prompt] for prompt, times in others)


@pytest.mark.slow
def test_answers_are_asked_for_once_however_often_it_is_stopped(tmp_path, monkeypatch, killing):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model", tokenizer=TOKENIZER)
    lines = [f'{{"prompt": "who is {n}?", "completion": "it is {n}"}}' for n in range(200)]
    Path("chat.jsonl").write_text("\n".join(lines))
    stub = Killing(None, range(5, 400, 30))
    with serving(stub) as url:
        recipe = {
            "student": {"model": "model"},
            "data": {
                **{"use": "sft", "path": "chat.jsonl", "block": 128, "validation_share": 0.05},
                **{"keep_columns": ["messages"], "template": "plain"},
            },
            "rollout": {"use": "served", "url": url, "model": "tiny", "max_new_tokens": 40},
            "loss": [{"use": "ce"}],
            "train": {"lr": 1e-3, "steps": 1, "batch": 4},
        }
        Path("r.toml").write_text(tomli_w.dumps(recipe))
        assert built_to_its_end() >= 2
    asked = Counter(str(body["messages"]) for _, body in stub.asked)
    assert len(asked) == 190 and {*asked.values()} == {1}
