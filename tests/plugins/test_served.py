"""A teacher behind a server tells what the model in this process would, or why it cannot."""

from types import SimpleNamespace

import kdcore_served.client
import numpy as np
import pytest
import tiny
import torch
from kdcore_served.teacher import Served
from stub_server import Stub, serving

import kdcore
from kdcore import RunError, Unreachable
from kdcore.objective.teachers import read_outputs
from kdcore.testing import check_teacher

pytestmark = pytest.mark.slow

TOKENIZER = tiny.byte_tokenizer()
MODEL = tiny.model(vocabulary=len(TOKENIZER)).eval()
SOME = tiny.documents([9, 7, 12], len(TOKENIZER))
BATCH = tiny.batch(SOME, [[(0, 0, 9), (1, 0, 7)], [(2, 0, 12)]], vocabulary=len(TOKENIZER))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nobody waits: how long is counted all the same."""
    monkeypatch.setattr(kdcore_served.client.time, "sleep", lambda seconds: None)
    original = kdcore_served.client.Client.__init__

    def init(self, *arguments, **options):
        original(self, *arguments, **options | {"sleep": lambda seconds: None})

    monkeypatch.setattr(kdcore_served.client.Client, "__init__", init)


def loaded(url, block=32, **options):
    teacher = Served(**{"url": url, "model": "tiny", "k": 5} | options)
    run = SimpleNamespace(
        tokenizer=TOKENIZER, recipe=SimpleNamespace(data=SimpleNamespace(block=block))
    )
    teacher.load(run)
    return teacher


def expected(k):
    """By one forward of each document by itself: ids and masses."""
    found = []
    for row in SOME:
        with torch.no_grad():
            logs = MODEL(torch.tensor(row)[None]).logits[0, :-1].log_softmax(-1)
        found.append(logs)
    logs = torch.cat(found)
    best = logs.topk(k)
    others = logs.scatter(1, best.indices, -torch.inf).logsumexp(-1, keepdim=True)
    return best.indices, torch.cat([best.values, others], -1)


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_it_tells_the_k_likeliest_of_the_same_model(api):
    with serving(Stub(MODEL)) as url:
        teacher = loaded(url, api=api)
        outputs = read_outputs(teacher, BATCH)(BATCH.valid)
        check_teacher(teacher, BATCH)
    ids, logs = expected(5)
    assert outputs.ids.equal(ids)
    torch.testing.assert_close(outputs.log_probabilities, logs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("failure", ["reset", "half", 429, 500, 503])
def test_what_may_pass_is_asked_again(failure):
    stub = Stub(MODEL)
    with serving(stub) as url:
        teacher = loaded(url)
        stub.failures = [failure, failure]
        outputs = read_outputs(teacher, BATCH)(BATCH.valid)
    assert not stub.failures
    assert outputs.ids.equal(expected(5)[0])


def test_another_model_after_a_lost_connection_is_refused():
    stub = Stub(MODEL)
    with serving(stub) as url:
        teacher = loaded(url)
        stub.model, stub.failures = tiny.model(vocabulary=len(TOKENIZER), seed=1).eval(), ["reset"]
        with pytest.raises(RunError, match="answers differently than before"):
            teacher.read(BATCH)


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_server_with_another_tokenizer_is_refused(api):
    """All of its ids may be the student's, so that nothing else would show it."""
    stub = Stub(MODEL)
    stub.tokenizer = tiny.byte_tokenizer(["quite other words here, over and over"], 290)
    said = r"another tokenizer: \d+ of \d+ ids differ, such as \d+, which is .* there and .* here"
    with serving(stub) as url:
        with pytest.raises(RunError, match=said):
            loaded(url, api=api)
        stub.tokenizer = TOKENIZER
        loaded(url, api=api)


def test_ids_that_a_server_does_not_have_are_another_tokenizers():
    with (
        serving(Stub(tiny.model(vocabulary=100).eval())) as url,
        pytest.raises(RunError, match=r"out of vocabulary.* Name its tokenizer in `tokenizer`"),
    ):
        loaded(url)


def test_a_checkpoint_knows_what_the_server_said():
    stub = Stub(MODEL)
    with serving(stub) as url:
        teacher = loaded(url)
        state = teacher.state_dict()
        teacher.load_state_dict(state)
        stub.model = tiny.model(vocabulary=len(TOKENIZER), seed=1).eval()
        with pytest.raises(RunError, match=r"it gave id \d+: -\d.* and now gives id"):
            loaded(url).load_state_dict(state)


def test_nothing_there_is_given_up():
    with serving(Stub(MODEL)) as url:
        pass
    with pytest.raises(Unreachable, match=rf"there is no answer from {url} .* tried for \d+ s"):
        loaded(url, give_up_after=5.0)


def test_that_it_waits_is_a_warning_once(caplog):
    with serving(Stub(MODEL)) as url:
        pass
    with pytest.raises(Unreachable):
        loaded(url, give_up_after=60.0)
    (said,) = [each.message for each in caplog.records]
    assert f"there is no answer from {url}" in said
    assert "tries again for 60 s" in said


def test_a_signal_ends_the_wait_for_a_server(monkeypatch):
    client = kdcore_served.client
    tried = []
    monkeypatch.setattr(client, "stop_requested", lambda: len(tried) == 3)
    with serving(Stub(MODEL)) as url:
        pass
    monkeypatch.setattr(client.time, "sleep", tried.append)
    asked = client.Client(url, timeout=1, give_up_after=600)
    asked._sleep = client.sleep_until_stopped
    with pytest.raises(Unreachable, match="tried for"):
        asked.get("/v1/models")
    assert len(tried) == 3 and max(tried) <= 0.5


def test_an_address_for_clients_of_openai_is_refused():
    with pytest.raises(RunError, match="leave out /v1"):
        loaded("http://127.0.0.1:9/v1/")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "other"}, "does not serve 'other'; it serves tiny"),
        ({"k": 21}, "--max-logprobs 21, or set a smaller k"),
        ({"block": 96}, "--set data.block=95, or start it with --max-model-len 97"),
        ({"api": "sglang", "failure": "{}"}, "answered without 'meta_info'"),
        ({"failure": "<html>"}, "text that is not JSON"),
        ({"failure": '{"choices": [{"prompt_logprobs": [null, null]}]}'}, "NoneType at a pos"),
        (
            {"failure": '{"choices": [{"text": "a"}]}'},
            "without 'prompt_logprobs': this server gives",
        ),
        (
            {"limit": "Unrecognized request argument: prompt_logprobs"},
            "Unrec.*this server gives no",
        ),
        ({"failure": '{"choices": []}'}, "gave no list of one choice"),
        ({"failure": '{"choices": [{"prompt_logprobs": {"1": 2}}]}'}, "JSON of another shape"),
        ({"failure": '{"choices": [{"prompt_logprobs": [null, {"a": 1}]}]}'}, "of another shape"),
        ({"failure": 'data: {"choices": []}\n\ndata: [DONE]\n'}, "it streams its answers"),
        ({"api": "sglang", "failure": '{"meta_info": []}'}, "answered without 'input_top"),
        (
            {"api": "sglang", "failure": '{"meta_info": {"input_top_logprobs": [null, [[1]]]}}'},
            "JSON of another shape",
        ),
        ({"failure": 404}, "refused a request"),
        ({"key": "secret"}, "asks for a key"),
        ({"key": "secret", "key_env": "SOME_KEY"}, "refused the key in SOME_KEY"),
        ({"key_env": "NO_SUCH_KEY"}, "export NO_SUCH_KEY="),
    ],
)
def test_every_refusal_is_a_sentence(options, said, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "wrong")
    stub = Stub(MODEL, length=96)
    stub.key = options.pop("key", None)
    stub.refuses_logprobs = options.pop("limit", None)
    failure = options.pop("failure", None)
    stub.failures = [failure] if failure else []
    with serving(stub) as url, pytest.raises(RunError, match=said):
        loaded(url, **options)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('{"1": {"logprob": null}}', "log-probabilities of a position, expected 1"),
        ('{"1": {"logprob": 0.5}}', "above 0, or NaN"),
        ('{"1": {"logprob": NaN}}', "above 0, or NaN"),
        ('{"1": {"logprob": -1}, "01": {"logprob": -2}}', "an id twice"),
        ("{}", "gave 0 log-probabilities"),
    ],
)
def test_numbers_that_are_none_are_refused(entry, said):
    stub = Stub(MODEL)
    stub.failures = ['{"choices": [{"prompt_logprobs": [null, ' + entry + "]}]}"]
    with serving(stub) as url, pytest.raises(RunError, match=said):
        loaded(url, k=1)


def test_an_id_without_any_mass_is_finite():
    """A model that never gives some ids says -inf of them."""
    stub = Stub(MODEL)
    entries = ', {"1": {"logprob": -0.0}, "2": {"logprob": -Infinity}}' * 63
    stub.failures = ['{"choices": [{"prompt_logprobs": [null' + entries + "]}]}"]
    with serving(stub) as url:
        teacher = loaded(url, k=2)
    assert teacher.state_dict()["logs"].unique().tolist() == [-100.0, 0.0]


def test_ids_outside_the_students_are_refused():
    with serving(Stub(tiny.model(vocabulary=len(TOKENIZER) + 500, seed=3).eval())) as url:
        teacher = loaded(url)
        with pytest.raises(RunError, match="share those below"):
            teacher.read(BATCH)


def losses_of(result):
    return [line["loss"] for line in result.metrics if line["loss"] is not None]


def test_a_recipe_with_it_trains_as_with_the_model_in_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "teacher", tokenizer=TOKENIZER)
    model = {"model": str(tmp_path / "teacher"), "use": "hf"}
    local = {"use": "cached", "kind": "topk", "k": 5, "teacher": model}
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
    recipe = {
        "name": "local",
        "student": {"config": config | {"num_hidden_layers": 1, "num_attention_heads": 2}},
        "tokenizer": {"use": "hf", "model": str(tmp_path / "teacher")},
        "data": {"use": "stories", "block": 32, "stories": 20},
        "teacher": local,
        "loss": [{"use": "kl"}],
        "train": {"lr": 1e-2, "steps": 4, "batch": 2, "log_every": 1},
    }
    one = kdcore.run(recipe)
    from transformers import AutoModelForCausalLM

    served = Stub(AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").eval())
    with serving(served) as url:
        teacher = {"use": "served", "url": url, "model": "tiny", "k": 5}
        other = kdcore.run(recipe | {"name": "served", "teacher": teacher})
    losses = [losses_of(each) for each in (one, other)]
    np.testing.assert_allclose(*losses, rtol=2e-3)  # the store has halves


def test_a_server_that_goes_leaves_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "teacher", tokenizer=TOKENIZER)
    stub = Stub(MODEL)
    with serving(stub) as url:
        recipe = {
            "name": "gone",
            "student": {"model": str(tmp_path / "teacher")},
            "data": {"use": "stories", "block": 32, "stories": 20},
            "teacher": {"use": "served", "url": url, "model": "tiny", "k": 5, "give_up_after": 1.0},
            "loss": [{"use": "kl"}],
            "train": {"lr": 1e-2, "steps": 6, "batch": 2, "log_every": 1},
        }
        whole = kdcore.run(recipe, out="elsewhere")
        ask, count = Stub.completions, []

        def failing(self, body):
            count.append(body)
            return (503, {}) if len(count) > 12 else ask(self, body)

        monkeypatch.setitem(__import__("stub_server").PATHS, "/v1/completions", failing)
        with pytest.raises(Unreachable):
            kdcore.run(recipe)
        assert list(tmp_path.glob("runs/gone-*/checkpoints/*"))
        monkeypatch.setitem(__import__("stub_server").PATHS, "/v1/completions", ask)
        resumed = kdcore.run(recipe)
    assert losses_of(whole) == losses_of(resumed)


def test_a_run_resumes_at_another_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "teacher", tokenizer=TOKENIZER)
    teacher = {"use": "served", "model": "tiny", "k": 5, "give_up_after": 0.0}
    recipe = {
        "name": "moved",
        "student": {"model": str(tmp_path / "teacher")},
        "data": {"use": "stories", "block": 32, "stories": 20},
        "loss": [{"use": "kl"}],
        "train": {"lr": 1e-2, "steps": 4, "batch": 2, "save_every": 2, "log_every": 1},
    }
    first = Stub(MODEL)
    with serving(first) as url:
        whole = kdcore.run(recipe | {"teacher": teacher | {"url": url}}, out="elsewhere")
        first.gone_after = len(first.asked) - 2
        first.asked.clear()
        with pytest.raises(Unreachable):
            kdcore.run(recipe | {"teacher": teacher | {"url": url}})
    with serving(Stub(MODEL)) as url:
        moved = kdcore.run(recipe | {"teacher": teacher | {"url": url, "timeout": 9.0}})
    assert len(list(tmp_path.glob("runs/moved-*"))) == 1
    assert losses_of(moved) == losses_of(whole)


def test_it_is_served_once_and_distilled_many_times(tmp_path, monkeypatch):
    """`cached` over `aligned` over `served`: the second run needs no server."""
    monkeypatch.chdir(tmp_path)
    other = tiny.byte_tokenizer(["of quite other words, and so on and on"], 300, eos="</s>")
    tiny.save(tmp_path / "teacher", tokenizer=other)
    stub = Stub(tiny.model(vocabulary=len(other), seed=1).eval())
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
    with serving(stub) as url:
        served = {"use": "served", "url": url, "model": "tiny", "k": 6}
        served |= {"tokenizer": str(tmp_path / "teacher"), "give_up_after": 0.0}
        aligned = {"use": "aligned", "teacher": served}
        recipe = {
            "name": "once",
            "student": {"config": config | {"num_hidden_layers": 1, "num_attention_heads": 2}},
            "tokenizer": {"use": "bpe", "vocab_size": 300},
            "data": {"use": "stories", "block": 32, "stories": 20},
            "teacher": {"use": "cached", "kind": "topk", "teacher": aligned},
            "loss": [{"use": "ce"}, {"use": "kl"}],
            "train": {"lr": 1e-2, "steps": 4, "batch": 2, "log_every": 1},
        }
        first = kdcore.run(recipe)
        asked = len(stub.asked)
        live = kdcore.run(recipe | {"name": "live", "teacher": aligned})
    assert asked > 4
    again = kdcore.run(recipe, fresh=True)
    assert losses_of(first) == losses_of(again)
    np.testing.assert_allclose(losses_of(first), losses_of(live), rtol=2e-3)
    shares = [line["teacher/aligned"] for line in first.metrics if line["loss"] is not None]
    assert all(0.1 < share < 1 for share in shares)


def test_a_document_longer_than_the_server_reads_is_known_up_to_there(tmp_path, monkeypatch):
    """The teacher's tokens are more than the student's, whose rows would fit."""
    monkeypatch.chdir(tmp_path)
    other = tiny.byte_tokenizer(["no words"], 258, eos="</s>")
    tiny.save(tmp_path / "teacher", tokenizer=other)
    stub = Stub(tiny.model(vocabulary=len(other), seed=1).eval(), length=80)
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
    with serving(stub) as url:
        served = {"use": "served", "url": url, "model": "tiny", "k": 6}
        served |= {"tokenizer": str(tmp_path / "teacher"), "give_up_after": 0.0}
        found = kdcore.run(
            {
                "student": {"config": config | {"num_hidden_layers": 1, "num_attention_heads": 2}},
                "tokenizer": {"use": "bpe", "vocab_size": 500},
                "data": {"use": "stories", "block": 96, "stories": 20},
                "teacher": {"use": "aligned", "teacher": served},
                "loss": [{"use": "ce"}, {"use": "kl"}],
                "train": {"lr": 1e-2, "steps": 2, "batch": 4, "log_every": 1},
            }
        )
    prompts = [len(body["prompt"]) for path, body in stub.asked if path == "/v1/completions"]
    assert max(prompts) == 79
    assert len(losses_of(found)) == 2
