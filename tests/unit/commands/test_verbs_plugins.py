"""`kdcore plugins`: the list with what is wrong, and every option of a component."""

import json
from types import SimpleNamespace

import pytest
from recorded_runs import expect

from kdcore import Loss, Teacher, UsageError, component
from kdcore.commands import plugins as verb
from kdcore.commands.plugins import plugins
from kdcore.plugin.loading import Plugin


@component
class Distance(Loss):
    """How far student and teacher are apart.

    A longer explanation, which is broken
    into two lines.

    power: the exponent of the distance.
    """

    name = "distance"
    power: float = 2.0
    words: list[str] | None = None


@component
class Lookup(Teacher):
    """Knows the answers."""

    name = "lookup"
    path: str
    fallback: Teacher | None = None


@pytest.fixture
def host(monkeypatch):
    """Four plugins: one good, one broken, one blocked, one with events and a note."""
    components = {"loss": ("distance",), "teacher": ("lookup",)}
    good = Plugin("mine", "kdcore-mine", "0.2.0", "kdcore_mine", components=components)
    found = [
        good,
        Plugin("cracked", "cracked", "1.0", "cracked", broken="ImportError: no module named x"),
        Plugin("away", "away", "3.1", "away", blocked=True),
        Plugin("ears", "./ears.py", "", "ears", hooks=("kdcore_log",), note="the file is shadowed"),
    ]
    provided = {"loss": Distance, "teacher": Lookup}

    def of_kind(kind):
        cls = provided.get(kind)
        return {cls.name: SimpleNamespace(cls=cls, plugin=good)} if cls else {}

    host = SimpleNamespace(plugins=found, provided=of_kind)
    monkeypatch.setattr(verb, "plugin_manager", lambda asked: host)
    return host


@pytest.mark.parametrize("width", [40, 80])
def test_the_list(host, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    plugins()
    expect(f"plugins_{width}", capsys.readouterr().out)


def test_a_plugin_with_its_options(host, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    plugins("mine")
    expect("plugins_mine_80", capsys.readouterr().out)


def test_a_component_by_its_name(host, capsys):
    plugins("lookup")
    said = capsys.readouterr().out
    assert "teacher lookup" in said and "required" in said and "distance" not in said


def test_a_broken_plugin_says_why(host, capsys):
    plugins("cracked")
    assert "broken: ImportError: no module named x" in capsys.readouterr().out


def test_for_programs(host, capsys):
    plugins(as_json=True)
    listed = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["broken"], each["blocked"]) for each in listed][1:3] == [
        ("cracked", "ImportError: no module named x", False),
        ("away", None, True),
    ]
    plugins("mine", as_json=True)
    parsed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in parsed["options"]] == ["lookup", "distance"]
    power = parsed["options"][1]["options"][0]
    assert (power["name"], power["type"], power["default"]) == ("power", "float", 2.0)


def test_an_unknown_name_has_a_suggestion(host):
    with pytest.raises(UsageError, match="did you mean 'lookup'"):
        plugins("lokup")


def test_kdcores_own_plugins_are_listed(capsys):
    plugins(as_json=True)
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed["panel"]["components"] == {"logger": ["panel"]}
    assert listed["files"]["module"] == "kdcore_files"
