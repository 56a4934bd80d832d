"""What strangers may hand over runs no code, writes nowhere but in its folder, and tells no secret.

Each test tries an attack and looks at what came of it.
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from fuzzing import PLAIN, a_world, cases, ended_cleanly, kdcore
from hypothesis import given
from hypothesis import strategies as st

from kdcore.cli.launch import launch
from kdcore.training.checkpoints.folders import damage

pytestmark = pytest.mark.slow

OUTSIDE = ["../x", "..", "a/b", "/tmp/x", "a\\b", "", ".", "a\0b", "~", "a b", "-x", "x" * 300]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    a_world(folder)
    return folder


@pytest.fixture(autouse=True)
def here(made, tmp_path, monkeypatch):
    """A fresh copy of the world, and beside it a victim."""
    shutil.copytree(made, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "victims" / "step-1").mkdir(parents=True)
    (tmp_path / "victims" / "step-1" / "diary.txt").write_text("mine")
    yield
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "victims" / "step-1" / "diary.txt").read_text() == "mine"
    assert not (tmp_path / "ran").exists(), "code of a stranger ran"
    assert sorted(os.listdir(tmp_path)) == ["victim", "victims", "world"]


class Runs:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self):
        return (Path.write_text, (Path.cwd().parent / "ran", "yes"))


# Names


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_the_folder_of_runs(name):
    said = json.dumps(name)
    for text in (
        f"name = {said}\n{PLAIN}",
        f"{PLAIN}\n[stage.{said}.train]\nsteps = 1",
        f"{PLAIN}\n[stage.one]\nseed = 1\n[stage.two.student]\nmodel = {json.dumps('@' + name)}\n",
    ):
        Path("r.toml").write_text(text)
        outcome = kdcore("run", "r.toml")
        ended_cleanly(outcome, (1, 2))
        runs = Path("runs")
        assert not list(runs.glob("**/final")) or outcome.code == 1
        shutil.rmtree(runs, ignore_errors=True)


def test_extends_reads_recipes_only():
    os.mkfifo("pipe")
    for name in ("/dev/zero", "pipe", "/etc/passwd", "..", "../victim"):
        Path("r.toml").write_text(f"extends = {json.dumps(name)}\n[train]\nlr = 1\n")
        ended_cleanly(kdcore("check", "r.toml"), (2,))


def test_names_of_stores_lead_nowhere_else(tmp_path):
    Path("runs/caches").mkdir(parents=True)
    for name in ("../../victims", "..", "/", str(tmp_path / "victims")):
        ended_cleanly(kdcore("cache", "rm", name, "--yes"), (2,))
    Path("runs/caches/hf-train-abc").symlink_to(tmp_path / "victims")
    ended_cleanly(kdcore("cache", "rm", "hf-train-abc", "--yes"), (0, 1, 2))


# Links


def a_run():
    ended_cleanly(kdcore("run", "plain.toml"), (0,))
    return next(Path("runs").glob("plain-*"))


FILES = ["metrics.jsonl", "log.txt", "env.json", "recipe.toml", "resolved.toml", "traceback.txt"]
FILES += ["fingerprints.json", ".lock", ".metrics.jsonl.partial", "checkpoints/step-2/state.json"]


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_written_through_a_link(name, tmp_path):
    run = a_run()
    shutil.rmtree(run / "final")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "victim")
    outcome = ended_cleanly(kdcore("run", "plain.toml"), (2,))
    assert f"{run / name} is a link to" in outcome.err
    ended_cleanly(kdcore("show", run), (0, 1, 2))


@pytest.mark.parametrize(
    "name", ["checkpoints", "tokenizer", ".final.partial", "checkpoints/step-9"]
)
def test_nothing_is_written_or_deleted_in_a_linked_folder(name, tmp_path):
    run = a_run()
    shutil.rmtree(run / "final")
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(tmp_path / "victims")
    outcome = ended_cleanly(kdcore("run", "plain.toml"), (2,))
    assert "is a link to" in outcome.err


def test_a_final_that_is_a_link_is_not_written_by_eval(tmp_path):
    run = a_run()
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(tmp_path / "victim")
    ended_cleanly(kdcore("eval", run), (0, 1, 2))


def test_the_folder_of_runs_may_be_a_link(tmp_path):
    Path("disk").mkdir()
    Path("runs").symlink_to("disk")
    ended_cleanly(kdcore("run", "plain.toml"), (0,))
    assert list(Path("disk").glob("plain-*/final"))


def test_stores_are_not_written_through_links(tmp_path):
    ended_cleanly(kdcore("run", "taught.toml"), (0,))
    (store,) = Path("runs/caches").iterdir()
    for name in [path.name for path in store.iterdir()]:
        path = store / name
        size = path.stat().st_size
        path.unlink()
        (tmp_path / "victim").write_bytes(b"\0" * size)
        path.symlink_to(tmp_path / "victim")
        ended_cleanly(kdcore("run", "taught.toml", "--fresh"), (0,))
        assert (tmp_path / "victim").read_bytes() == b"\0" * size
        (tmp_path / "victim").write_text("mine")
        assert not path.is_symlink()


@pytest.mark.parametrize("name", ["/dev/zero", "../../../victim", "../step-1/state.json", "a/b"])
def test_manifests_name_their_own_files_only(name, tmp_path):
    (tmp_path / "world" / "step-1").mkdir()
    (tmp_path / "world" / "step-1" / "manifest.json").write_text(json.dumps({name: "0" * 64}))
    assert "not its own file" in damage(tmp_path / "world" / "step-1")


@pytest.mark.parametrize("content", ["[]", "7", '{"a": 1}', "", "null", '{"": "x"}'])
def test_manifests_that_are_none(content, tmp_path):
    (tmp_path / "world" / "step-1").mkdir()
    (tmp_path / "world" / "step-1" / "manifest.json").write_text(content)
    assert damage(tmp_path / "world" / "step-1")


# Code


@pytest.mark.parametrize("key", ["teacher", "student"])
def test_pickled_weights_are_refused(key):
    shutil.copytree("model", "evil")
    Path("evil/model.safetensors").unlink()
    torch.save({"a": Runs()}, "evil/pytorch_model.bin")
    change = {"teacher": "teacher.model=evil", "student": "student.model=evil"}[key]
    outcome = ended_cleanly(kdcore("run", "taught.toml", "--set", change), (1,))
    assert "pytorch_model.bin" in outcome.err and "may run code" in outcome.err


def test_pickled_adapters_are_refused():
    Path("evil").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "model", "task_type": "CAUSAL_LM"}
    Path("evil/adapter_config.json").write_text(
        json.dumps({**config, "target_modules": ["q_proj"]})
    )
    torch.save({"a": Runs()}, "evil/adapter_model.bin")
    outcome = ended_cleanly(kdcore("run", "taught.toml", "--set", "teacher.adapter=evil"), (1,))
    assert "may run code" in outcome.err


def test_a_training_state_of_torch_save_is_no_checkpoint():
    run = a_run()
    shutil.rmtree(run / "final")
    for path in run.glob("checkpoints/step-*/*.safetensors"):
        torch.save({"a": Runs()}, path)
    outcome = ended_cleanly(kdcore("run", "plain.toml"), (0,))
    assert outcome.err.count("is damaged") == 2


@pytest.mark.parametrize("use", ["text", "sft"])
def test_data_runs_no_code(use):
    Path("data").mkdir()
    marker = Path.cwd().parent / "ran"
    Path("data/data.py").write_text(f"open({str(marker)!r}, 'w')\n")
    Path("data/a.npy").write_bytes(pickle.dumps(Runs()))
    Path("data/a.pkl").write_bytes(pickle.dumps(Runs()))
    for path in ("data", "data/data.py", "data/a.npy", "data/a.pkl"):
        data = f"data={{use='{use}', path='{path}', validation_share=0.5, block=16}}"
        ended_cleanly(kdcore("run", "plain.toml", "--set", data), (1, 2))


def test_the_code_of_a_model_is_not_run():
    shutil.copytree("model", "evil")
    marker = Path.cwd().parent / "ran"
    Path("evil/evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    mapped = {
        "AutoConfig": "evil.C",
        "AutoModelForCausalLM": "evil.M",
        "AutoTokenizer": ["evil.T", None],
    }
    for file in ("config.json", "tokenizer_config.json"):
        config = json.loads(Path("evil", file).read_text())
        config |= {"auto_map": mapped, "model_type": "evil", "tokenizer_class": "EvilTokenizer"}
        Path("evil", file).write_text(json.dumps(config))
    for change in ("teacher.model=evil", "student.model=evil", "tokenizer.model=evil"):
        ended_cleanly(kdcore("run", "taught.toml", "--set", change), (1, 2))
    ended_cleanly(kdcore("generate", "evil", "--prompt", "a"), (1, 2))
    for key in ("auto_map", "trust_remote_code"):
        config = f"student={{config={{model_type='llama', {key}=true}}}}"
        ended_cleanly(kdcore("run", "plain.toml", "--set", config), (2,))


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open({marker!r}, "w")
class C(LlamaConfig):
    model_type = "own"
class M(LlamaForCausalLM):
    config_class = C
"""


def lay_own():
    """A model with code of its own, and the file that is there when that code has run."""
    shutil.copytree("model", "own")
    marker = Path("own_code_ran").absolute()
    Path("own/own.py").write_text(OWN_CODE.format(marker=str(marker)))
    config = json.loads(Path("own/config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}
    config["auto_map"]["AutoModelForCausalLM"] = "own.M"
    Path("own/config.json").write_text(json.dumps(config))
    return marker


def test_the_code_of_a_model_runs_where_the_recipe_names_that_model():
    marker = lay_own()
    run = ("run", "taught.toml", "--set", "teacher.model=own", "--set")
    for others in ("[]", "['model', './own', 'OWN']"):
        refused = kdcore(*run, f"trust_remote_code={others}")
        ended_cleanly(refused, (1,))
        assert 'say trust_remote_code = ["own"] at the top of the recipe' in refused.err
        assert not marker.exists()
    trusting = kdcore(*run, "trust_remote_code=['own']")
    assert trusting.code == 0, trusting.err
    assert marker.exists()
    assert "the recipe trusts 'own': code from there may run" in trusting.err
    marker.unlink()
    assert kdcore("run", "taught.toml", "--set", "teacher.model=own").code == 0  # it is finished
    # Trust was that of the other recipe.
    ended_cleanly(kdcore("eval", "own", "--recipe", "taught.toml"), (1, 2))
    assert not marker.exists()
    ended_cleanly(kdcore(*run, "trust_remote_code='own'"), (2,))


def test_and_where_its_answers_are_kept_before_any_run():
    marker = lay_own()
    cached = "teacher={use='cached', kind='topk', k=4, teacher={use='hf', model='own'}}"
    build = ("cache", "build", "taught.toml", "--set", cached, "--set")
    ended_cleanly(kdcore(*build, "trust_remote_code=['model']"), (1,))
    assert not marker.exists()
    trusting = kdcore(*build, "trust_remote_code=['own']")
    assert trusting.code == 0, trusting.err
    assert marker.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch ../ran').read() }}",
        "{% include '/etc/passwd' %}",
        "{% for a in range(10**9) %}{% endfor %}",
    ],
)
def test_templates_are_kept_in_their_box(template):
    data = {"use": "sft", "path": "chat.jsonl", "validation_share": 0.5, "block": 32}
    inline = ", ".join(f"{k} = {json.dumps(v)}" for k, v in {**data, "template": template}.items())
    ended_cleanly(kdcore("run", "plain.toml", "--set", f"data={{{inline}}}"), (1,))


def test_modules_next_to_a_recipe_are_not_imported(monkeypatch, capfd):
    marker = Path.cwd().parent / "ran"
    for name in ("tomli", "kdcore_text", "sitecustomize", "pluggy"):
        Path(f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\n")
    assert launch(["check", "plain.toml"], 1) == 0


# Secrets

SPILLS = """\
import os, logging
from kdcore import Eval, component, hookimpl

@component
class Spills(Eval):
    name = "spills"
    how: str
    variable: str

    def measure(self, run):
        secret = os.environ[self.variable]
        if self.how == "said":
            run.say(f"with {secret}")
        if self.how == "warned":
            logging.getLogger("kdcore").warning("with %s", secret)
        if self.how == "raised":
            raise ValueError(f"401 for Bearer {secret}")
        return {"x": 1.0}

@hookimpl
def kdcore_evals():
    return [Spills]
"""
NAMES = ["HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"]
NAMES += ["HUGGING_FACE_HUB_TOKEN", "MY_PASSWORD", "api_key", "DB_PASSWD", "GOOGLE_CREDENTIALS"]


@cases(24)
@given(
    st.sampled_from(NAMES),
    st.uuids().map(lambda drawn: f"s3cr+t/{drawn}"[: 20 + drawn.int % 24]),
    st.sampled_from(["said", "warned", "raised", "commented"]),
)
def test_no_secret_of_the_environment_is_written_anywhere(name, secret, how):
    shutil.rmtree("runs", ignore_errors=True)
    Path("spills.py").write_text(SPILLS)
    eval_of = f'[[eval]]\nuse = "spills"\nhow = "{how}"\nvariable = "{name}"\n'
    comment = f"# curl -H {secret}\n" if how == "commented" else ""
    Path("s.toml").write_text(comment + PLAIN + eval_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, secret)
        outcome = ended_cleanly(kdcore("run", "s.toml", "-p", "spills.py"), (0, 3))
    own = {"recipe.toml"} if how == "commented" else set()  # as typed, and it stays here
    files = [path for path in Path("runs").rglob("*") if path.is_file() and path.name not in own]
    assert len(files) > 5
    spilled = [str(path) for path in files if secret.encode() in path.read_bytes()]
    assert not spilled
    assert secret not in outcome.err + outcome.out
