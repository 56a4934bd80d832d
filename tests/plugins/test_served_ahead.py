"""Requests of the next step are sent while a step trains: the same bits and the same failures."""

import gc
import threading
from threading import Event

import kdcore_served.client
import pytest
import tiny
from kdcore_served.requests import Requests, answers
from kdcore_served.teacher import Served
from stub_server import PATHS, Stub, serving

import kdcore
from kdcore import Unreachable
from kdcore.training.step import TrainStep

TOKENIZER = tiny.byte_tokenizer()
MODEL = tiny.model(vocabulary=len(TOKENIZER)).eval()
STEPS, ROWS = 4, 4
AT_FIRST = 2  # requests at the start, of the fixed text


class Counting(Stub):
    """Sets `event` at the request with the given number."""

    def __init__(self, texts):
        super().__init__(MODEL)
        self.texts, self.event, self.count = texts, Event(), 0

    def completions(self, body):
        with self.lock:
            self.count += 1
            if self.count == self.texts:
                self.event.set()
        return super().completions(body)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setitem(PATHS, "/v1/completions", lambda stub, body: stub.completions(body))
    monkeypatch.setattr(kdcore_served.client, "_LONGEST_WAIT", 0.0)


def recipe(tmp_path, url, **train):
    if not (tmp_path / "teacher").exists():
        tiny.save(tmp_path / "teacher", tokenizer=TOKENIZER)
    return {
        "name": "ahead",
        "student": {"model": str(tmp_path / "teacher")},
        "data": {"use": "stories", "block": 32, "stories": 20, "rows": "chunk"},
        "teacher": {"use": "served", "url": url, "model": "tiny", "k": 5, "give_up_after": 0.0},
        "loss": [{"use": "kl"}],
        "eval": [],
        "train": {"lr": 1e-2, "steps": STEPS, "batch": ROWS, "micro_batch": 2, "log_every": 1}
        | train,
    }


def losses_of(result):
    return [line["loss"] for line in result.metrics if line["loss"] is not None]


@pytest.mark.slow
def test_the_next_step_is_asked_while_this_one_trains(tmp_path, monkeypatch, counting):
    monkeypatch.chdir(tmp_path)
    original, waited = TrainStep.backward, []
    with serving(Counting(10**9)) as url:
        plain = kdcore.run(recipe(tmp_path, url), out="plain")
    stub = Counting(AT_FIRST + 2 * ROWS)  # the last row of the second step

    def backward(self, *arguments):
        if not waited:
            waited.append(stub.event.wait(20))
        return original(self, *arguments)

    monkeypatch.setattr(TrainStep, "backward", backward)
    with serving(stub) as url:
        ahead = kdcore.run(recipe(tmp_path, url), out="ahead")
    assert waited == [True]
    assert stub.count == AT_FIRST + STEPS * ROWS  # nothing behind the last step, and nothing twice
    assert losses_of(ahead) == losses_of(plain)


@pytest.mark.slow
def test_it_gives_the_bits_of_a_teacher_that_asks_in_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving(Stub(MODEL)) as url:
        ahead = kdcore.run(recipe(tmp_path, url), out="ahead")
        monkeypatch.setattr(Served, "prefetches", lambda self: False)
        plain = kdcore.run(recipe(tmp_path, url), out="plain")
    assert losses_of(ahead) == losses_of(plain)


@pytest.mark.slow
def test_a_request_that_fails_early_ends_the_run_in_its_own_step(tmp_path, monkeypatch, counting):
    """Rows from step 3 on are refused: two steps are trained, and the same command resumes."""
    monkeypatch.chdir(tmp_path)
    in_order = Stub(MODEL)
    with serving(in_order) as url:
        one_at_a_time = recipe(tmp_path, url)
        one_at_a_time["teacher"]["concurrency"] = 1
        whole = kdcore.run(one_at_a_time, out="whole")
    prompts = [body["prompt"] for path, body in in_order.asked if path == "/v1/completions"]
    trained, refused = prompts[: AT_FIRST + 2 * ROWS], prompts[AT_FIRST + 2 * ROWS :]
    assert not [each for each in refused if each in trained]

    class Failing(Stub):
        def completions(self, body):
            return (503, {}) if body["prompt"] in refused else super().completions(body)

    with serving(Failing(MODEL)) as url, pytest.raises(Unreachable):
        kdcore.run(recipe(tmp_path, url))
    assert [each.name for each in tmp_path.glob("runs/ahead-*/checkpoints/*")] == ["step-2"]
    with serving(Stub(MODEL)) as url:
        resumed = kdcore.run(recipe(tmp_path, url))
    assert losses_of(resumed) == losses_of(whole)


def test_a_failure_cancels_what_was_not_asked_yet():
    asked, first, second = [], Event(), Event()

    def ask(number):
        asked.append(number)
        if number == 0:
            first.wait(20)
            raise ValueError("no")
        second.wait(20)
        return number

    requests = Requests(ask, 1)
    futures = requests.submit([0, 1, 2, 3])
    first.set()
    with pytest.raises(ValueError, match="no"):
        answers(futures)
    second.set()
    assert requests.submit([4])[0].result(20) == 4
    assert {2, 3}.isdisjoint(asked)


def test_its_threads_end_with_it():
    before = {*threading.enumerate()}
    requests = Requests(lambda number: number, 3)
    assert answers(requests.submit([1, 2])) == [1, 2]
    mine = {*threading.enumerate()} - before
    assert len(mine) == 3
    del requests
    gc.collect()
    for each in mine:
        each.join(20)
    assert not any(each.is_alive() for each in mine)
