import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import install, loss

from kdcore import UsageError
from kdcore.plugin.loading import Plugin
from kdcore.plugin.manager import PluginManager

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def forget_modules():
    """Each test imports its plugins anew."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("alpha_", "beta_", "kdcore_plugin_file_")):
            del sys.modules[name]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    def do(distribution: str, modules: dict[str, str], **rest) -> Path:
        folder = install(tmp_path / f"site_{distribution}", distribution, modules, **rest)
        monkeypatch.syspath_prepend(folder)
        return folder

    return do


def the(host: PluginManager, name: str) -> Plugin:
    (found,) = (plugin for plugin in host.plugins if plugin.name == name)
    return found


def test_a_plugin_is_found_and_listed(installed):
    installed("kdcore-alpha", {"alpha_found": loss("found")}, entry_points={"alpha": "alpha_found"})
    host = PluginManager()
    plugin = the(host, "alpha")
    assert (plugin.distribution, plugin.version) == ("kdcore-alpha", "0.1")
    assert (plugin.module_name, plugin.status) == ("alpha_found", "on")
    assert plugin.hooks == ("kdcore_losses",)
    assert plugin.components == {"loss": ("found",)}
    assert plugin.broken is None and plugin.note is None and plugin.events == ()
    provided = host.provided("loss")["found"]
    assert provided.cls.name == "found" and provided.plugin is plugin


def test_own_plugins_come_first(installed):
    installed("aaa", {"alpha_first": loss("first")})
    owners = [plugin.distribution for plugin in PluginManager().plugins]
    assert owners == sorted(owners, key=lambda owner: (owner != "kdcore", owner))


BREAKAGES = {
    "import": (
        "import nowhere_at_all",
        "No module named 'nowhere_at_all' (alpha_broken.py, line 2)",
    ),
    "syntax": ("def (", "SyntaxError"),
    "exit": ("import sys; sys.exit(4)", "SystemExit: 4"),
    "unknown hook": (
        "@hookimpl\ndef kdcore_loses(): ...",
        "kdcore_loses is not a hook; did you mean 'kdcore_losses'?",
    ),
    "unknown argument": (
        "@hookimpl\ndef kdcore_log(recrod): ...",
        "kdcore_log has no argument 'recrod'; did you mean 'record'?",
    ),
    "wrapper": ("@hookimpl(wrapper=True)\ndef kdcore_log():\n    yield", "no hook wrappers"),
    "raising hook": (
        "@hookimpl\ndef kdcore_losses(): 1 / 0",
        "ZeroDivisionError: division by zero",
    ),
    "generator": ("@hookimpl\ndef kdcore_losses():\n    yield 1", "not a sequence of classes"),
    "nothing": (
        "@hookimpl\ndef kdcore_losses(): ...",
        "kdcore_losses returned None, not a sequence",
    ),
    "instance": ("@hookimpl\ndef kdcore_losses(): return [3]", "3 is not a class of the kind Loss"),
    "other kind": (
        loss("x").replace("kdcore_losses", "kdcore_teachers"),
        "is not a class of the kind Teacher",
    ),
    "undecorated": (loss("x").replace("@component", ""), "Made lacks @component"),
    "nameless": (loss("x").replace('name = "x"', ""), "Made has no name"),
    "typed name": (loss("x").replace("name =", "name: str ="), 'write name = "..." without a type'),
    "bad name": (loss("a.b"), "Made cannot be named 'a.b'"),
    "name of the recipe language": (loss("none"), "Made cannot be named 'none'"),
    "reserved option": (loss("x").replace("temperature", "weight"), "is called 'weight', which"),
    "reserved alias": (
        loss("x").replace("= 1.0", "= __import__('pydantic').Field(1.0, alias='on')"),
        "the option 'temperature' of Made is called 'on', which recipes use themselves",
    ),
    "hiding option": (
        loss("x").replace("temperature", "per_token"),
        "the option 'per_token' of Made hides Loss.per_token: use another name and an alias",
    ),
    "hiding statement": (
        loss("x").replace("temperature: float", "needs_teacher: bool"),
        "the option 'needs_teacher' of Made hides Loss.needs_teacher",
    ),
    "option type": (
        loss("x").replace("float = 1.0", "tuple[int, int] = (1, 2)"),
        "the option 'temperature' of Made has type tuple[int, int]; possible are bool,",
    ),
    "unresolved type": (
        loss("x").replace("float = 1.0", "'Missing | None' = None"),
        "the option 'temperature' of Made has a type that cannot be found",
    ),
    "elsewhere": (
        loss("x").replace('name = "x"', 'name = "x"; elsewhere = frozenset({"url"})'),
        "Made.elsewhere names 'url', which is not one of its options",
    ),
    "twice": (loss("x").replace("[Made]", "[Made, Made]"), "two of the kind loss named 'x'"),
}


@pytest.mark.parametrize("text, cause", BREAKAGES.values(), ids=BREAKAGES)
def test_what_is_broken_is_listed_with_its_cause_and_harms_nothing_else(installed, text, cause):
    installed("kdcore-alpha", {"alpha_broken": text})
    installed("kdcore-beta", {"beta_good": loss("good")})
    host = PluginManager()
    plugin = the(host, "alpha_broken")
    assert plugin.status == "broken" and cause in plugin.broken
    assert "good" in host.provided("loss")
    assert plugin not in [each.plugin for each in host.provided("loss").values()]
    assert cause in host.why_missing("loss", "x")


def test_an_event_method_with_a_wrong_name_breaks_its_plugin(installed):
    text = """
    @component
    class Made(Logger):
        name = "made"

        @hookimpl
        def kdcore_losses(self): ...

    @hookimpl
    def kdcore_loggers():
        return [Made]
    """
    installed("kdcore-alpha", {"alpha_method": text})
    assert "Made.kdcore_losses is not an event hook" in the(PluginManager(), "alpha_method").broken


def test_an_entry_point_must_be_a_module(installed):
    installed("kdcore-alpha", {"alpha_object": "x = 1"}, entry_points={"alpha": "alpha_object:x"})
    assert "'alpha_object:x' is not a module" in the(PluginManager(), "alpha").broken


def test_one_module_under_two_names_is_used_once(installed):
    points = {"alpha": "alpha_twice", "again": "alpha_twice"}
    installed("kdcore-alpha", {"alpha_twice": loss("twice")}, entry_points=points)
    host = PluginManager()
    assert sorted(plugin.status for plugin in host.plugins if plugin.name in points) == [
        "broken",
        "on",
    ]
    assert "twice" in host.provided("loss")


def test_an_optional_unknown_hook_is_fine(installed):
    text = "@hookimpl(optionalhook=True)\ndef kdcore_of_tomorrow(): ..."
    installed("kdcore-alpha", {"alpha_optional": text})
    assert the(PluginManager(), "alpha_optional").status == "on"


@pytest.mark.parametrize(
    "text, note",
    [
        ("def kdcore_losses(): return []", "kdcore_losses lacks @hookimpl and is never called"),
        ("def kdcore_loses(): ...", "is not a hook; did you mean 'kdcore_losses'?"),
        (
            loss("x").replace("\n@hookimpl", "\n    def kdcore_log(self): ...\n\n@hookimpl"),
            "Made.kdcore_log lacks @hookimpl and is never called",
        ),
    ],
)
def test_a_forgotten_hookimpl_is_noted(installed, text, note):
    installed("kdcore-alpha", {"alpha_forgot": text})
    plugin = the(PluginManager(), "alpha_forgot")
    assert plugin.status == "on" and note in plugin.note


def test_an_imported_hook_is_not_a_forgotten_one(installed):
    installed("kdcore-alpha", {"alpha_imports": "from kdcore.api.hookspecs import kdcore_losses"})
    assert the(PluginManager(), "alpha_imports").note is None


def test_a_missing_name_says_which_plugin_forgot_its_hookimpl(installed):
    installed("kdcore-alpha", {"alpha_forgot": loss("x").replace("@hookimpl", "")})
    text = PluginManager().why_missing("loss", "x")
    assert "The plugin 'alpha_forgot' (kdcore-alpha 0.1): kdcore_losses lacks @hookimpl" in text


def test_a_blocked_plugin_is_listed_and_not_imported(installed):
    installed("kdcore-alpha", {"alpha_off": loss("off")})
    host = PluginManager(off=["alpha_off"])
    plugin = the(host, "alpha_off")
    assert plugin.status == "blocked" and plugin.broken is None
    assert "alpha_off" not in sys.modules and "off" not in host.provided("loss")
    text = host.why_missing("loss", "off")
    assert "The plugin 'alpha_off' (kdcore-alpha 0.1) is blocked" in text


def test_blocking_what_does_not_exist_is_reported(installed, caplog):
    installed("kdcore-alpha", {"alpha_on": loss("on")})
    with caplog.at_level(logging.WARNING, logger="kdcore"):
        PluginManager(off=["alpha_onn"])
    assert "-p no:alpha_onn: there is no such plugin; did you mean 'alpha_on'?" in caplog.text


def test_a_conflict_is_an_error_only_for_the_name_asked(installed):
    installed("kdcore-alpha", {"alpha_same": loss("same")})
    installed("kdcore-beta", {"beta_same": loss("same"), "beta_more": loss("more")})
    host = PluginManager()
    assert "same" not in host.provided("loss") and "more" in host.provided("loss")
    assert [each.plugin.name for each in host.conflicts("loss")["same"]] == [
        "alpha_same",
        "beta_same",
    ]
    assert host.why_missing("loss", "same") == (
        "the loss 'same' comes from the plugin 'alpha_same' (kdcore-alpha 0.1) and the plugin "
        "'beta_same' (kdcore-beta 0.1): choose with -p no:alpha_same or -p no:beta_same"
    )
    assert "comes from the plugin 'beta_same'" in the(host, "alpha_same").note


def test_blocking_settles_a_conflict(installed):
    installed("kdcore-alpha", {"alpha_same": loss("same")})
    installed("kdcore-beta", {"beta_same": loss("same")})
    host = PluginManager(off=["alpha_same"])
    assert host.provided("loss")["same"].plugin.name == "beta_same"


def test_two_entry_points_of_one_name_can_be_distinguished(installed):
    installed("kdcore-alpha", {"alpha_name": loss("one")}, entry_points={"mine": "alpha_name"})
    installed("kdcore-beta", {"beta_name": loss("two")}, entry_points={"mine": "beta_name"})
    host = PluginManager()
    assert {"one", "two"} <= set(host.provided("loss"))
    assert the(host, "mine").distribution == "kdcore-alpha"
    assert "two" not in PluginManager(off=["kdcore-beta:mine"]).provided("loss")


@pytest.mark.parametrize(
    "kind, name, said",
    [
        ("loss", "nicee", "no loss is named 'nicee'; did you mean 'nice'?"),
        ("teacher", "nice", "no teacher is named 'nice', but a loss is"),
    ],
)
def test_a_missing_name_gets_a_suggestion(installed, kind, name, said):
    installed("kdcore-alpha", {"alpha_nice": loss("nice")})
    assert PluginManager().why_missing(kind, name).startswith(said)


def test_output_of_plugins_is_sent_to_stderr(installed, capsys):
    installed("kdcore-alpha", {"alpha_prints": "print('hello from alpha')"})
    PluginManager()
    captured = capsys.readouterr()
    assert captured.out == "" and "hello from alpha" in captured.err


def test_a_plugin_for_another_kdcore_is_noted(installed):
    installed("kdcore-alpha", {"alpha_later": loss("later")}, requires=("kdcore>=99",))
    plugin = the(PluginManager(), "alpha_later")
    assert plugin.status == "on" and "kdcore>=99 is needed" in plugin.note


def test_a_file_is_a_plugin_of_the_name_of_its_stem(tmp_path):
    file = tmp_path / "random.py"
    annotations = (
        "from __future__ import annotations\nfrom kdcore import component, hookimpl, Loss\n"
    )
    optional = loss("mine").replace("float = 1.0", "Loss | None = None")
    file.write_text(annotations + optional)
    host = PluginManager(files=[file])
    plugin = the(host, "random")
    assert (plugin.distribution, plugin.version) == (str(file), "")
    assert "mine" in host.provided("loss")
    assert sys.modules.get("random") is not sys.modules[plugin.module_name]
    assert str(plugin) == f"the plugin 'random' ({file})"


def test_a_file_named_twice_is_loaded_once(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    the(PluginManager(files=["mine.py", tmp_path / "mine.py"]), "mine")


@pytest.mark.parametrize(
    "typed, said",
    [
        ("minee.py", "-p minee.py: there is no such file; did you mean mine.py?"),
        ("nowhere/x.py", "-p nowhere/x.py: there is no such file"),
        (".", "-p .: this is a folder; give the Python file of the plugin"),
        ("broken.py", "-p broken.py: ZeroDivisionError: division by zero (broken.py, line 1)"),
        ("text.txt", "-p text.txt: ImportError: text.txt is not a Python file"),
        ("loses.py", "-p loses.py: kdcore_loses is not a hook; did you mean 'kdcore_losses'?"),
    ],
)
def test_an_absent_or_broken_file_is_a_usage_error(tmp_path, monkeypatch, typed, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "text.txt").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "loses.py").write_text(
        "from kdcore import hookimpl\n@hookimpl\ndef kdcore_loses(): ..."
    )
    with pytest.raises(UsageError, match=re.escape(said)):
        PluginManager(files=[typed])
    assert not any(name.startswith("kdcore_plugin_file_broken") for name in sys.modules)


def test_a_file_can_be_blocked(tmp_path):
    (tmp_path / "alpha_blocked.py").write_text("1 / 0")
    host = PluginManager(off=["alpha_blocked"], files=[tmp_path / "alpha_blocked.py"])
    assert the(host, "alpha_blocked").status == "blocked"


def test_components_are_described_with_their_plugin(installed):
    installed("kdcore-alpha", {"alpha_said": loss("said")})
    host = PluginManager()
    made = host.provided("loss")["said"].cls()
    assert host.describe(made) == ("the loss 'said' of the plugin 'alpha_said' (kdcore-alpha 0.1)")


def test_own_plugins_are_all_on():
    own = [plugin for plugin in PluginManager().plugins if plugin.distribution == "kdcore"]
    # A plugin's file may not be written yet; what is there must load.
    absent = "ModuleNotFoundError: No module named 'kdcore"
    broken = {plugin.name: plugin.broken for plugin in own if plugin.broken}
    assert {name: why for name, why in broken.items() if not why.startswith(absent)} == {}
    assert [plugin.name for plugin in own if plugin.note] == []


HEAVY = ("transformers", "datasets", "accelerate", "peft", "pandas", "pyarrow", "tokenizers")


@pytest.mark.slow
def test_loading_plugins_imports_nothing_heavy():
    script = (
        "import sys; from kdcore.plugin.manager import PluginManager; host = PluginManager()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
