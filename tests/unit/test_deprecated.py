"""Names of 0.1 still work and warn; private modules that moved say where they went."""

import importlib
import logging
import warnings

import pytest

import kdcore
from kdcore.deprecated import INTERNAL, MOVED, MOVED_NAMES, RENAMED
from kdcore.errors import Diagnostic
from kdcore.plugin.manager import PluginManager


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_public_name_is_its_successor(old):
    with pytest.warns(DeprecationWarning, match=rf"kdcore\.{old} is now kdcore\.{RENAMED[old]};"):
        assert getattr(kdcore, old) is getattr(kdcore, RENAMED[old])
    assert RENAMED[old] in kdcore.__all__
    assert old not in kdcore.__all__


@pytest.mark.parametrize("old", INTERNAL)
def test_a_name_that_is_private_now_still_works(old):
    with pytest.warns(DeprecationWarning, match=rf"kdcore\.{old} is now .*, and private"):
        assert getattr(kdcore, old) is not None
    assert old not in kdcore.__all__


def test_a_warning_shows_the_line_that_used_the_name():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec("from kdcore import Coarse", {})
    assert caught[0].filename == "<string>"


def test_the_old_name_of_the_errors_of_a_recipe():
    error = kdcore.RecipeError([Diagnostic("lr is 0", "r.toml")])
    with pytest.warns(DeprecationWarning, match=r"is now `RecipeError\.errors`"):
        assert error.faults is error.errors


@pytest.mark.parametrize("old", MOVED)
def test_a_module_that_moved_says_where(old):
    importlib.import_module(f"kdcore.{MOVED[old]}")
    with pytest.raises(ModuleNotFoundError, match=rf"kdcore\.{old} is now kdcore\.{MOVED[old]}"):
        importlib.import_module(f"kdcore.{old}")


@pytest.mark.parametrize("package", MOVED_NAMES)
def test_a_module_that_is_a_package_now_says_where_its_names_are(package):
    found = importlib.import_module(f"kdcore.{package}")
    for module, names in MOVED_NAMES[package].items():
        importlib.import_module(f"kdcore.{package}.{module}")
        for name in names.split():
            with pytest.raises(ImportError, match=rf"is now in kdcore\.{package}\.{module}, and"):
                getattr(found, name)
    with pytest.raises(AttributeError):
        _ = found.nothing_like_it


def test_a_plugin_that_uses_an_old_name_is_named(tmp_path, caplog):
    plugin = tmp_path / "elder.py"
    plugin.write_text(
        "from kdcore import Coarse, Loss, component, hookimpl\n"
        "@component\n"
        "class Elder(Loss):\n"
        "    name = 'elder'\n"
        "@hookimpl\n"
        "def kdcore_losses():\n"
        "    return [Elder]\n"
    )
    with caplog.at_level(logging.WARNING, "kdcore"):
        manager = PluginManager(files=[plugin])
    assert "elder" in manager.provided("loss")
    assert "the plugin 'elder'" in caplog.text
    assert "kdcore.Coarse is now kdcore.SparseLogits" in caplog.text


def test_a_plugin_that_imports_a_private_module_that_moved_is_broken_and_says_why(tmp_path):
    plugin = tmp_path / "elder.py"
    plugin.write_text("from kdcore.hub import load_model\n")
    with pytest.raises(kdcore.UsageError, match=r"kdcore\.hub is now kdcore\.models\.loading"):
        PluginManager(files=[plugin])
