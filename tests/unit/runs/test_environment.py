"""env.json: versions, machine and plugins, and nothing that is nobody's business."""

import json

from kdcore.plugin.manager import PluginManager
from kdcore.runs.environment import environment_of, record


def test_it_names_versions_and_the_machine():
    said = json.loads(record())
    assert {"kdcore", "torch", "transformers"} <= said["packages"].keys()
    assert said["processor"]["cores"] >= 1
    assert said["plugins"]["panel"].startswith("kdcore ")


def test_a_hosts_plugins_are_reported_with_their_state(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("")
    plugins = environment_of(PluginManager(off=["panel"], files=[file]))["plugins"]
    assert plugins["panel"].endswith(", blocked")
    assert plugins["mine"] == str(file)


def test_no_variable_is_reported_but_those_of_the_list(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    said = record()
    assert "hf_secret" not in said
    assert json.loads(said)["variables"]["OMP_NUM_THREADS"] == "3"
