import json
import sys
from importlib.metadata import distribution

import pytest
from distributions import install, loss

from kdcore.plugin.discovery import reserved_modules, shadow_note
from kdcore.plugin.manager import PluginManager

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def forget_modules():
    yield
    for name in [name for name in sys.modules if name.startswith("gamma_")]:
        del sys.modules[name]


def note(name: str) -> str | None:
    (plugin,) = (plugin for plugin in PluginManager().plugins if plugin.name == name)
    return plugin.note


def test_first_party_modules_are_reserved():
    assert {"kdcore", "kdcore_losses", "kdcore_hf"} <= reserved_modules()


def test_a_file_in_front_of_the_module_is_noted(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "site", "gamma", {"gamma_front": loss("x")}))
    assert note("gamma_front") is None
    del sys.modules["gamma_front"]
    (tmp_path / "here").mkdir()
    other = tmp_path / "here" / "gamma_front.py"
    other.write_text("")
    monkeypatch.syspath_prepend(other.parent)
    assert note("gamma_front") == (
        f"the module gamma_front was imported from {other}, which is not what gamma installed: "
        "rename that file"
    )
    text = PluginManager().why_missing("loss", "x")
    assert f"imported from {other}" in text


def test_a_broken_file_in_front_is_noted_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "site", "gamma", {"gamma_broken": loss("x")}))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "gamma_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path / "here")
    assert "was imported from" in str(note("gamma_broken"))


def test_a_distribution_installed_over_another_is_noted(tmp_path, monkeypatch):
    site = install(tmp_path / "site", "gamma", {"gamma_over": loss("x")})
    install(site, "gamma-late", {"gamma_over": loss("y")}, entry_points={"late": "gamma_over"})
    monkeypatch.syspath_prepend(site)
    assert "is not what gamma installed" in str(note("gamma_over"))


def test_a_reserved_name_in_front_says_so(tmp_path):
    file = tmp_path / "kdcore_losses.py"
    file.write_text("")
    said = shadow_note("kdcore_losses", file, distribution("kdcore"))
    assert said is not None and "kdcore_losses is a module of kdcore's own" in said


def test_an_editable_install_owns_its_folder(tmp_path, monkeypatch):
    site = install(tmp_path / "site", "gamma", {})
    project = tmp_path / "project folder"
    project.mkdir()
    (project / "gamma_edit.py").write_text("")
    url = {"url": project.as_uri(), "dir_info": {"editable": True}}
    (site / "gamma-0.1.dist-info" / "direct_url.json").write_text(json.dumps(url))
    monkeypatch.syspath_prepend(site)
    own = distribution("gamma")
    assert shadow_note("gamma_edit", project / "gamma_edit.py", own) is None
    assert shadow_note("gamma_edit", tmp_path / "gamma_edit.py", own) is not None
