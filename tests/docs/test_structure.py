"""What keeps the structure: kinds and no names in the engine, the public API only in plugins."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import kdcore

ROOT = Path(__file__).resolve().parents[2]
ENGINE = sorted((ROOT / "kdcore").rglob("*.py"))
COMMANDS = ROOT / "kdcore" / "commands"
CORE = [path for path in ENGINE if COMMANDS not in path.parents]
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN_MODULES = {value.split(".")[0] for value in PROJECT["entry-points"]["kdcore"].values()} - {
    "kdcore"
}


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_use_the_public_api_only(path):
    for module, names in imports(path):
        if module == "kdcore" or module.startswith("kdcore."):
            assert module == "kdcore", f"{path.name} imports the private {module}"
            assert set(names) <= set(kdcore.__all__)


def test_all_that_is_public_can_be_imported():
    for name in kdcore.__all__:
        assert getattr(kdcore, name) is not None


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_names_no_plugin(path):
    assert not [m for m, _ in imports(path) if m.split(".")[0] in OWN_MODULES]
    components = {"rho", "reverse-kl", "skew-kl", "tinystories", "ensemble", "perplexity", "panel"}
    strings = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not strings & components


# Verbs of the product that look after what a first-party plugin keeps, read files as it does, ask
# its server or render its dialogues. No other verb may, and nothing outside commands/.
OF_A_PLUGIN = {
    "cache.py": {"kdcore_cached", "kdcore_rollouts"},
    "examination.py": {"kdcore_cached"},
    "served_choice.py": {"kdcore_served"},
    "data_file.py": {"kdcore_text"},
    "generate.py": {"kdcore_sft"},
}


@pytest.mark.parametrize(
    "path", sorted({*ENGINE} - {*CORE}), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_verb_imports_no_plugin_by_name(path):
    named = {module.split(".")[0] for module, _ in imports(path)} & OWN_MODULES
    assert named == OF_A_PLUGIN.get(path.name, set())


@pytest.mark.parametrize("path", [*ENGINE, *PLUGINS], ids=lambda path: str(path.relative_to(ROOT)))
def test_one_idea_a_file_one_screen_a_function(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{path.name}: {node.name}"


def test_every_verb_and_plugin_that_is_registered_is_there():
    for group in ("kdcore", "kdcore.commands"):
        for value in PROJECT["entry-points"][group].values():
            module = value.partition(":")[0].replace(".", "/")
            folder = ROOT if module.startswith("kdcore/") else ROOT / "plugins"
            assert (folder / f"{module}.py").exists() or (folder / module).is_dir()


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in ENGINE} - {COMMANDS}), ids=lambda path: path.name
)
def test_a_folder_can_be_taken_in_at_a_glance(folder):
    assert len(list(folder.glob("*.py"))) <= 14 + 1  # and its __init__


def test_no_file_names_a_place_of_one_machine():
    place = re.compile(r"(?<![\w/])/(?:home|root|work)/\w")
    for path in [
        *ENGINE,
        *PLUGINS,
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*"),
        *ROOT.glob("recipes/*"),
    ]:
        if path.is_file():
            assert not place.search(path.read_text()), path


@pytest.mark.parametrize("root", ["kdcore", "plugins"])
def test_no_module_leads_back_to_itself(root, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from structure import circles_of, imports_of

    trees = {path: ast.parse(path.read_text()) for path in (ROOT / root).rglob("*.py")}
    imports = imports_of(ROOT if root == "kdcore" else ROOT / root, trees)
    assert sum(map(len, imports.values())) > 100 and circles_of(imports) == []


def test_a_circle_is_found_wherever_its_imports_stand(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from structure import circles_of, imports_of

    texts = {
        "__init__": "",
        "a": "if TYPE_CHECKING:\n    from own.b import B\n",
        "b": "def late():\n    from . import c\n",
        "c": "import own.a\n",
        "d": "from own import a\n",
    }
    trees = {tmp_path / "own" / f"{name}.py": ast.parse(text) for name, text in texts.items()}
    assert circles_of(imports_of(tmp_path, trees)) == [3]
