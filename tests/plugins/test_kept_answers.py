"""What a writer answered once is read from disk from then on, by every run."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from kdcore_rollouts.kept import Answers, KeptAnswer
from kdcore_rollouts.teacher import TeacherWrites
from kdcore_served.writer import ServedWrites
from stub_server import Stub, serving
from typer.testing import CliRunner

import kdcore
from kdcore import RunError
from kdcore.cli.main import app
from kdcore.testing.rollouts import WritingRun, make_prompts

pytestmark = pytest.mark.slow

TOKENIZER = tiny.byte_tokenizer(["what is 12? it is 13, I say to you"], 300)
ASKED = [f"what is {n}?" for n in range(10)]


def dialogue(*turns):
    roles = ["user", "assistant"] * len(turns)
    each = [{"role": role, "content": said} for role, said in zip(roles, turns, strict=False)]
    return {"messages": each}


def write(records, name="chat.jsonl"):
    with open(name, "w") as file:
        file.writelines(json.dumps(each) + "\n" for each in records)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model", tokenizer=TOKENIZER)
    write(dialogue(each, "it is one more") for each in ASKED)


def recipe(rollout, **more):
    return {
        "name": "answers",
        "student": {"model": "model"},
        "data": {
            **{"use": "sft", "path": "chat.jsonl", "block": 128, "validation_share": 0.2},
            **{"keep_columns": ["messages"], "template": "plain"},
        },
        "rollout": rollout,
        "loss": [{"use": "ce"}],
        "train": {"lr": 1e-2, "epochs": 2, "batch": 4, "log_every": 1},
    } | more


def served(url, **more):
    asked = {"use": "served", "url": url, "model": "tiny", "max_new_tokens": 40}
    return asked | {"give_up_after": 0.0} | more


def losses(result):
    return [line["loss"] for line in result.metrics if line["loss"] is not None]


def toml(made):
    import tomli_w

    with open("r.toml", "wb") as file:
        tomli_w.dump(made, file)


def call(*words):
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def asked_of(stub):
    return [body["messages"] for path, body in stub.asked if path == "/v1/chat/completions"]


def test_a_server_is_asked_each_prompt_once_over_epochs_and_runs():
    stub = Stub(None)
    with serving(stub) as url:
        first = kdcore.run(recipe(served(url)))
    questions = [each[-1]["content"] for each in asked_of(stub)]
    assert len({*questions}) == len(questions) == 8 and {*questions} < {*ASKED}
    again = kdcore.run(recipe(served("http://127.0.0.1:9")), fresh=True)
    assert losses(first) == losses(again)


def test_n_answers_differ_and_all_train():
    stub = Stub(None)
    with serving(stub) as url:
        kdcore.run(recipe(served(url, n=3)))
    assert len(asked_of(stub)) == 3 * 8
    seeds = {body["seed"] for path, body in stub.asked if path == "/v1/chat/completions"}
    assert len(seeds) == 3 * 8


def test_what_is_refused_empty_or_too_long_is_counted_and_left_out(capsys):
    odd = ["say a long one", "say an empty one", "refuse this", "filter this", "forbidden"]
    write(dialogue(each, "no") for each in [*ASKED, *odd])
    stub = Stub(None)
    with serving(stub) as url:
        data = recipe({})["data"] | {"validation_share": None, "validation": "held.jsonl"}
        data = {key: value for key, value in data.items() if value is not None}
        write([dialogue("and?", "no")], "held.jsonl")
        kdcore.run(recipe(served(url), data=data))
    (kept,) = (Answers(path) for path in here_caches().glob("answers-*"))
    assert kept.counts() == {"kept": 10, "refused": 3, "empty": 1, "truncated": 1}
    name = kept.folder.name
    (line,) = json.loads(call("cache", "ls", "--json"))
    assert (line["store"], line["kept"], line["refused"]) == (name, 10, 3)
    assert "10 answers" in call("cache", "ls")
    said = " ".join(call("cache", "verify").split())  # the terminal's width breaks it
    assert "10 answers, left out: 3 refused, 1 empty, 1 truncated" in said
    exported = call("cache", "export", name[-12:], "out.jsonl")
    assert "out.jsonl: 10 dialogues" in exported
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert sorted(each["messages"][0]["content"] for each in lines) == sorted(ASKED)
    assert all(each["messages"][-1]["content"].endswith("I say") for each in lines)
    call("cache", "rm", name, "--yes")
    assert not kept.folder.exists()


def here_caches():
    return Path("runs/caches")


@pytest.mark.parametrize(
    ("odd", "left_out"),
    [("say a long one", r"(\d) of \1 answers of 'tiny' are left out \(\1 truncated\)"), ("so", "")],
)
def test_a_server_whose_answers_are_left_out_is_a_warning_once(odd, left_out, caplog):
    """Nothing is trained then, and the loss is 0."""
    write(dialogue(f"{odd}, {each}", "no") for each in ASKED)
    with serving(Stub(None)) as url:
        kdcore.run(recipe(served(url)))
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert len(said) == bool(left_out)
    assert all(re.search(left_out, each) and "rollout.max_new_tokens" in each for each in said)


def test_what_is_exported_is_data():
    stub = Stub(None)
    with serving(stub) as url:
        toml(recipe(served(url)))
        assert "8 answers written; 8 answers" in call("cache", "build", "r.toml")
        assert "nothing was missing" in call("cache", "build", "r.toml")
    (kept,) = (Answers(path) for path in here_caches().glob("answers-*"))
    call("cache", "export", kept.folder.name, "out.jsonl")
    made = recipe(None)
    del made["rollout"]
    made["data"] = made["data"] | {"path": "out.jsonl"}
    assert losses(kdcore.run(made | {"name": "learned"}))
    assert len(asked_of(stub)) == 8
    kdcore.run(recipe(served(url)))  # nothing is asked any more


def test_each_answer_of_a_dialogue_is_asked_with_what_was_said_before():
    write(dialogue(f"{n} and?", "one", f"{n} so?", "two", "done?", "three") for n in range(10))
    stub = Stub(None)
    with serving(stub) as url:
        kdcore.run(recipe(served(url)))
    lengths = sorted(len(each) for each in asked_of(stub))
    assert lengths == [1] * 8 + [3] * 8 + [5] * 8
    longest = max(asked_of(stub), key=len)
    assert [each["content"] for each in longest][1:] == [
        "one",
        longest[2]["content"],
        "two",
        "done?",
    ]


def test_data_without_dialogues_is_refused():
    data = recipe({})["data"] | {"keep_columns": []}
    with pytest.raises(kdcore.RecipeError, match="keep_columns"):
        kdcore.run(recipe(served("http://127.0.0.1:9"), data=data))


def test_an_interrupted_run_asks_for_what_is_missing_only(monkeypatch):
    stub = Stub(None)
    with serving(stub) as url:
        stub.gone_after = 5
        with pytest.raises(kdcore.Unreachable):
            kdcore.run(recipe(served(url, concurrency=1)))
        answered = asked_of(stub)[:5]
        stub.gone_after = None
        stub.asked.clear()
        kdcore.run(recipe(served(url, concurrency=1)))
    assert len(asked_of(stub)) == 3
    assert not [each for each in asked_of(stub) if each in answered]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("{}", r"answered without choices\[0\].message"),
        ('{"choices": [{"message": {"content": 3}}]}', "gave int as an answer's content"),
        (404, "refused a request"),
    ],
)
def test_a_server_of_another_kind_is_a_sentence(failure, said):
    stub = Stub(None)
    stub.failures = [failure] * 4
    with serving(stub) as url, pytest.raises(RunError, match=said):
        kdcore.run(recipe(served(url)))


class Counting(kdcore.Teacher):
    def __init__(self):
        self.asked = []

    def writes(self):
        return True

    def fingerprint(self):
        return "counting"

    def __str__(self):
        return "counting()"

    def generate(self, prompts, sampling):
        self.asked += [tuple(each.ids) for each in prompts]
        return [
            kdcore.Completion([each.seed % 50, 0], finished=True, log_probs=[-0.1, -1 / 3])
            for each in prompts
        ]


@pytest.fixture
def run(monkeypatch):
    import kdcore_rollouts.teacher

    monkeypatch.setattr(kdcore_rollouts.teacher, "describe", str)
    return WritingRun(Counting(), block=40)


def test_a_teacher_answers_each_prompt_once_whoever_asks(run):
    writer, prompts = TeacherWrites(max_new_tokens=8), make_prompts(4)
    first = writer.generate(run, prompts)
    again = TeacherWrites(max_new_tokens=8).generate(run, [each.again(1) for each in prompts])
    assert len(run.teacher.asked) == 4
    assert [(one.ids, one.log_probs) for one in first] == [
        (one.ids, one.log_probs) for one in again
    ]
    other = TeacherWrites(max_new_tokens=9).generate(run, prompts)
    assert len(run.teacher.asked) == 8
    assert [one.ids for one in other] == [one.ids for one in first]


def test_without_keeping_it_answers_again(run):
    writer, prompts = TeacherWrites(max_new_tokens=8, keep=False), make_prompts(4)
    first, second = (writer.generate(run, [e.again(n) for e in prompts]) for n in (0, 1))
    assert [one.ids for one in first] != [one.ids for one in second]
    assert not list(run.caches.glob("*"))


def open_in(folder):
    return Answers.open(folder, "teacher", {"teacher": "t"}, "t")


def test_a_torn_line_is_no_answer_and_the_next_is_whole(tmp_path):
    kept = open_in(tmp_path)
    for n in range(3):
        kept.put(("ab", n), KeptAnswer(ids=[n, 0]))
    path = kept.folder / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    torn = open_in(tmp_path)
    assert ("ab", 1) in torn and ("ab", 2) not in torn and torn.torn() == 1
    torn.put(("ab", 2), KeptAnswer(ids=[7]))
    again = open_in(tmp_path)
    assert list(again[("ab", 2)].ids) == [7] and len(again) == 3


def test_a_changed_line_is_no_answer(tmp_path):
    kept = open_in(tmp_path)
    kept.put(("ab", 0), KeptAnswer(ids=[4, 0], text="four"))
    path = kept.folder / "answers.jsonl"
    path.write_text(path.read_text().replace("four", "five"))
    assert ("ab", 0) not in open_in(tmp_path)


def test_what_another_process_appends_is_seen(tmp_path):
    one, other = open_in(tmp_path), open_in(tmp_path)
    assert not len(one)
    other.put(("ab", 0), KeptAnswer(ids=[4, 0]))
    assert ("ab", 0) in one and len(list(one)) == 1


def test_an_answer_too_long_in_the_students_ids_is_left_out():
    writer = ServedWrites(url="http://x", model="m", max_new_tokens=3)
    run = SimpleNamespace(tokenizer=TOKENIZER)
    prompt = SimpleNamespace(reference=[TOKENIZER.eos_token_id])
    assert writer._completion(run, KeptAnswer(text="it is what it is to you"), prompt) is None
    assert writer._completion(run, KeptAnswer(text="it"), prompt).ids[-1] == TOKENIZER.eos_token_id
