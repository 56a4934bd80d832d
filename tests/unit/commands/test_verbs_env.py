"""`kdcore env`: for a bug report, without secrets."""

import json

from recorded_runs import expect

from kdcore.commands import env as verb
from kdcore.commands.env import env

_SAID = {
    "python": "3.11.7",
    "platform": "Linux-6.1-x86_64",
    "packages": {"kdcore": "0.1.0", "torch": "2.13.0"},
    "processor": {"name": "A Processor", "cores": 8, "threads": 4, "capability": "AVX512"},
    "devices": [
        {"name": "A Device", "memory": 80 * 2**30, "capability": "9.0", "cuda": "13.0"},
        {"name": "A Device", "memory": 80 * 2**30, "capability": "9.0", "cuda": "13.0"},
    ],
    "plugins": {"losses": "kdcore 0.1.0", "mine": "kdcore-mine 0.2.0"},
    "variables": {"OMP_NUM_THREADS": "4"},
}


def test_the_table(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(verb, "environment_of", lambda host: _SAID)
    env()
    expect("env_80", capsys.readouterr().out)


def test_for_programs(monkeypatch, capsys):
    monkeypatch.setattr(verb, "environment_of", lambda host: _SAID)
    env(as_json=True)
    assert json.loads(capsys.readouterr().out) == _SAID


def test_the_machine_at_hand(capsys):
    env()
    said = capsys.readouterr().out
    assert "python" in said and "transformers" in said and "panel" in said
