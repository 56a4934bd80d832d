"""Plugins that raise, return something else, write into what they are given, print, or exit.

Whoever is at fault is named, with plugin, component and method; nobody else is harmed.
"""

from pathlib import Path

import pytest
import torch
from fuzzing import a_world, ended_cleanly, kdcore
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).resolve().parents[1] / "helpers" / "misbehaving.py"
RECIPE = """\
tokenizer = {use = "bad"}
data = {use = "bad"}
teacher = {use = "bad"}
loss = [{use = "bad"}]
selection = {use = "bad"}
eval = [{use = "bad"}, {use = "listens"}]
log = [{use = "bad"}]
train = {lr = 1e-3, steps = 2, batch = 2, save_every = 1, log_every = 1}
[student]
patch = [{use = "bad"}]
[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
"""
PLACES = {  # kind -> where it stands in the recipe, and its class
    "data": ("data", "Texts"),
    "tokenizer": ("tokenizer", "Ids"),
    "teacher": ("teacher", "Knows"),
    "loss": ("loss.1", "Far"),
    "selection": ("selection", "Some"),
    "patch": ("student.patch.1", "Change"),
    "eval": ("eval.1", "Measure"),
}
# Kind, method -> what is said of a 7, of None, and of a value in another shape; None where it is
# no misbehaviour. `at` is the function that the teacher's `read` hands back.
NUMBERS = "floating-point numbers of shape [30, 300 or more]"
ROW = "a PieceRows, expected a mapping"
TABLE = {
    ("data", "texts"): ("'int' object is not iterable", "is not iterable", "gave int"),
    ("data", "make_rows"): ("returned int from make_rows, expected rows", "NoneType", ROW),
    ("data", "fingerprint"): ("expected a str", "returned None", "returned a list"),
    ("data", "faults"): ("not iterable", "not iterable", "a tuple among its texts"),
    ("data", "missing"): ("not iterable", "not iterable", "a tuple among its texts"),
    ("data", "names_on_hub"): ("not iterable", "not iterable", "a list among its texts"),
    ("tokenizer", "load"): ("expected a PreTrainedTokenizerBase", "returned None", "a list"),
    ("teacher", "load"): (None, None, None),
    ("teacher", "tokenizer"): ("returned an int from tokenizer", None, "returned a list"),
    ("teacher", "architecture"): ("expected a PreTrainedConfig or None", None, "a list"),
    ("teacher", "gives_logits"): ("expected a bool", "returned None", "returned a list"),
    ("teacher", "ids_known"): ("expected a SparseLogits", None, "expected an int or None"),
    ("teacher", "fingerprint"): ("expected a str", "returned None", "returned a list"),
    ("teacher", "read"): ("gave int from read, expected a function", "gave NoneType", "gave list"),
    ("teacher", "at"): (NUMBERS, NUMBERS, "gave torch.float32 of shape [29, 300] from read"),
    ("loss", "per_token"): ("returned int from per_token", "NoneType", "a tensor of shape (24,)"),
    ("loss", "formula"): ("expected a str", "returned None", "returned a list"),
    ("loss", "linear_in_teacher"): ("expected a bool", "returned None", "returned a list"),
    ("selection", "needs_teacher"): ("expected a bool", "returned None", "returned a list"),
    ("selection", "keep"): ("returned int from keep", "NoneType", "a bool tensor of shape (24,)"),
    ("patch", "apply"): ("expected a Module", "returned None", "returned a list"),
    ("patch", "finish"): ("expected a Module", "returned None", "returned a list"),
    ("eval", "measure"): ("expected a Mapping", "returned None", "not 'list'"),
}
METHODS = [*TABLE]
WRITERS = {("teacher", "read"), ("teacher", "at"), ("loss", "per_token")}
EVENTS = [
    *("kdcore_run_start", "kdcore_step_start", "kdcore_log"),
    *("kdcore_scores", "kdcore_checkpoint", "kdcore_run_end"),
]


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        a_world(folder)
        Path("bad.toml").write_text(RECIPE)
        yield


def run(out, key, where, how):
    changes = ["--set", f"{key}.spot={where}", "--set", f"{key}.how={how}"]
    return kdcore("run", "bad.toml", "-p", PLUGIN, "--out", out, *changes)


def ended(tmp_path, method, how):
    kind, where = method
    return ended_cleanly(run(tmp_path, PLACES[kind][0], where, how), (0, 3))


def names(outcome, method):
    """Plugin, component and method are named."""
    kind, where = method
    said = outcome.err.splitlines()[-1]
    assert outcome.code == 3
    assert f"{kind} 'bad'" in said
    own = {"at": "read", "texts": ""}.get(where, where)
    assert own in said or "expected a SparseLogits" in said or "expected a mapping" in said
    if where != "texts" and "expected a mapping" not in said:
        assert f"(misbehaving.py: {PLACES[kind][1]})" in said
    return said


@pytest.mark.parametrize("how", ["raises", "exits"])
@pytest.mark.parametrize("method", METHODS, ids=".".join)
def test_who_raises_is_named(tmp_path, method, how):
    outcome = ended(tmp_path, method, how)
    said = names(outcome, method)
    assert {"raises": "raised ZeroDivisionError", "exits": "raised SystemExit"}[how] in said


@pytest.mark.parametrize("how", ["type", "none", "shape"])
@pytest.mark.parametrize("method", METHODS, ids=".".join)
def test_who_returns_something_else_is_named(tmp_path, method, how):
    expected = TABLE[method][["type", "none", "shape"].index(how)]
    outcome = ended(tmp_path, method, how)
    if expected is None:
        assert outcome.code == 0
    else:
        assert expected in names(outcome, method)


@pytest.mark.parametrize("method", METHODS, ids=".".join)
def test_a_plugin_that_writes_into_its_inputs_is_named_or_harmless(tmp_path, method):
    outcome = ended(tmp_path / "writes", method, "writes")
    if method in WRITERS:
        said = names(outcome, method)
        assert "wrote into the tensors that" in said and "work on a copy" in said
        return
    assert outcome.code == 0
    ended_cleanly(run(tmp_path / "good", "data", "nowhere", "nothing"), (0,))
    one, other = (final(tmp_path / name) for name in ("writes", "good"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def final(out):
    return load_file(next(out.glob("bad-*/final/model.safetensors")))


def assert_is_the_folder(out, runs):
    """The run's folder is the one line of standard output."""
    (folder,) = runs.glob("bad-*")
    assert out == f"{folder}\n"


@pytest.mark.parametrize("method", METHODS, ids=".".join)
def test_what_a_method_prints_is_no_result(tmp_path, method):
    outcome = ended(tmp_path, method, "prints")
    assert outcome.code == 0
    assert_is_the_folder(outcome.out, tmp_path)
    assert "NOISE" in outcome.err


@pytest.mark.parametrize("how", ["raises", "exits"])
@pytest.mark.parametrize("event", EVENTS)
def test_a_listener_that_raises_ends_the_run_and_is_named(tmp_path, event, how):
    outcome = run(tmp_path, "eval.2", event, how)
    ended_cleanly(outcome, (3,))
    assert "the eval 'listens' of the plugin 'misbehaving'" in outcome.err
    assert f"raised in {event}" in outcome.err


@pytest.mark.parametrize("how", ["raises", "exits"])
@pytest.mark.parametrize("event", EVENTS)
def test_a_logger_that_raises_is_switched_off_and_named(tmp_path, event, how):
    outcome = run(tmp_path, "log.1", event, how)
    ended_cleanly(outcome, (0,))
    assert outcome.err.count(f"raised in {event} and is now disabled") == 1
    assert "the logger 'bad' of the plugin 'misbehaving'" in outcome.err


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("how", ["type", "prints"])
def test_return_values_and_output_of_listeners_are_ignored(tmp_path, event, how):
    outcome = run(tmp_path, "log.1", event, how)
    ended_cleanly(outcome, (0,))
    assert_is_the_folder(outcome.out, tmp_path)
    assert "is now disabled" not in outcome.err


@pytest.mark.parametrize("event", ["kdcore_log", "kdcore_scores"])
def test_a_logger_cannot_change_what_others_hear(tmp_path, event):
    outcome = run(tmp_path, "log.1", event, "writes")
    ended_cleanly(outcome, (0,))
    assert f"raised in {event} and is now disabled" in outcome.err
    metrics = next(tmp_path.glob("bad-*/metrics.jsonl")).read_text()
    assert metrics.count('"loss/bad"') == 2 and metrics.count('"eval/bad"') == 2


@pytest.mark.parametrize(
    "method", [("loss", "per_token"), ("eval", "measure"), ("patch", "finish")]
)
def test_a_run_resumes_once_the_plugin_is_fixed(tmp_path, method, monkeypatch):
    """The misbehaviour is in the code, not in the recipe: the folder is the same one."""
    import sys

    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.read_text())
    (key, _), where = PLACES[method[0]], method[1]
    command = ("run", "bad.toml", "-p", plugin, "--out", tmp_path, "--set", f"{key}.spot={where}")
    ended_cleanly(kdcore(*command), (0,))
    good = final(tmp_path)
    module = next(m for m in [*sys.modules.values()] if getattr(m, "__file__", None) == str(plugin))
    monkeypatch.setattr(module, "done", fails_later(module.done, 1 if where == "finish" else 2))
    ended_cleanly(kdcore(*command, "--fresh"), (3,))
    monkeypatch.undo()
    again = kdcore(*command)
    ended_cleanly(again, (0,))
    folders = sorted(tmp_path.glob("bad-*"))
    assert len(folders) == 2 and all((each / "final").is_dir() for each in folders)
    assert all(torch.equal(good[name], value) for name, value in load_last(folders).items())


def fails_later(done, number):
    calls = []

    def once_good(how, result=None, *inputs):
        calls.append(how)
        if len(calls) >= number:
            raise ZeroDivisionError("later")
        return done("", result, *inputs)

    return once_good


def load_last(folders):
    return load_file(folders[-1] / "final" / "model.safetensors")
