"""Third-party distributions in examples/ are built, installed and used as anybody would."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import kdcore

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
ALPHA = EXAMPLES / "kdcore-alpha"
MORE = EXAMPLES / "kdcore-more-losses"
NGRAM = EXAMPLES / "kdcore-ngram"
LM_EVAL = EXAMPLES / "kdcore-lm-eval"
OPTUNA = EXAMPLES / "kdcore-optuna"
RAY = EXAMPLES / "kdcore-ray"
ALL = [ALPHA, MORE, NGRAM, LM_EVAL, OPTUNA, RAY]
MODULES = sorted(file for file in EXAMPLES.rglob("*.py") if file.parent.name != "tests")


def depends_on(file: Path) -> set[str]:
    """The modules of what the distribution of this file says that it needs."""
    folder = next(each for each in file.parents if (each / "pyproject.toml").is_file())
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in project["dependencies"]}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: f"{file.parent.name}.{file.stem}")
def test_examples_import_the_public_api_and_what_they_depend_on(file):
    own = file.parent.name if (file.parent / "__init__.py").exists() else file.stem
    # kdcore itself depends on torch and pydantic.
    allowed = {*sys.stdlib_module_names, "torch", "pydantic", own, *depends_on(file)}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module.partition(".")[0] in allowed
            if node.module.partition(".")[0] == "kdcore":
                assert node.module == "kdcore"
                assert {each.name for each in node.names} <= set(kdcore.__all__)
        elif isinstance(node, ast.Import):
            names = {each.name for each in node.names}
            assert {name.partition(".")[0] for name in names} <= allowed
            assert not any(name.startswith("kdcore.") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("example", ALL, ids=lambda folder: folder.name)
def test_the_tests_of_the_example_pass(example):
    environment = {**os.environ, "PYTHONPATH": str(example)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=example, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class Environment:
    """A fresh virtual environment that borrows third-party packages from the current one."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.folder, self.python = folder, folder / "bin" / "python"

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "--quiet"]
        subprocess.run([*command, *arguments], check=True)

    def borrow(self) -> None:
        """Behind its own packages; the .pth files there, editable installs, are not followed."""
        paths = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout
        borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        Path(paths.strip(), "borrowed.pth").write_text("\n".join(sorted(borrowed)))

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)

    def kdcore(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.folder / "bin" / "kdcore"), *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, *ALL):
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
        subprocess.run([*command, str(folder), str(project)], check=True, capture_output=True)
    return [str(wheel) for wheel in folder.iterdir()]


@pytest.fixture
def environment(tmp_path, wheels) -> Environment:
    fresh = Environment(tmp_path / "environment")
    fresh.pip("install", "--no-deps", "--no-index", *wheels)
    fresh.borrow()
    return fresh


@pytest.fixture
def here(tmp_path) -> Path:
    """An empty folder with the recipes: nothing of the repository is near."""
    folder = tmp_path / "here"
    folder.mkdir()
    for example in ALL:
        for file in (*example.glob("*.toml"), *example.glob("colours.*")):
            if file.name != "pyproject.toml":
                shutil.copy(file, folder)
    return folder


@pytest.mark.slow
def test_an_installed_example_is_used_by_a_recipe(environment, here):
    files = environment.run("-c", "import kdcore, kdcore_alpha; print(kdcore.__file__)", cwd=here)
    assert files.stdout.startswith(str(environment.folder)), "the repository's kdcore was imported"

    done = environment.kdcore("run", "alpha.toml", cwd=here)
    assert done.returncode == 0, done.stderr
    (run,) = (here / "runs").glob("alpha-*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss/hellinger" in line]
    assert {line["step"] for line in trained} >= {5, 10, 15, 20}
    assert all(0.79 < line["kept"] < 0.82 for line in trained)
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert len((run / "curve.csv").read_text().splitlines()) == 1 + len(trained)
    assert (run / "final" / "model.safetensors").is_file()


@pytest.mark.slow
def test_more_losses_that_are_installed_train_a_student(environment, here):
    listed = environment.kdcore("plugins", "more-losses", cwd=here)
    assert listed.returncode == 0, listed.stderr
    for name in [
        "adakd",
        "bdkd",
        "cosine",
        "hinge",
        "hrl",
        "iw-opd",
        "logistic",
        "top1-ce",
        "position",
    ]:
        assert name in listed.stdout

    done = environment.kdcore("run", "more.toml", cwd=here)
    assert done.returncode == 0, done.stderr
    (run,) = (here / "runs").glob("more.student-*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss/adakd" in line]
    assert {line["step"] for line in trained} >= {5, 10, 15, 20}
    assert all({"loss/hinge", "loss/top1-ce"} <= line.keys() for line in trained)
    assert all(0.4 < line["kept"] < 0.6 for line in trained)
    assert trained[-1]["loss/adakd"] < trained[0]["loss/adakd"]


@pytest.mark.slow
def test_a_teacher_with_state_is_in_the_checkpoints(environment, here):
    done = environment.kdcore("run", "ngram.toml", "--set", "train.save_every=10", cwd=here)
    assert done.returncode == 0, done.stderr
    (run,) = (here / "runs").glob("ngram-*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss/kl" in line]
    assert trained[-1]["loss/kl"] < trained[0]["loss/kl"]
    verified = environment.kdcore("plugins", "ngram", "--verify", cwd=here)
    assert verified.returncode == 0, verified.stdout


@pytest.mark.slow
def test_tasks_of_the_harness_score_a_student(environment, here):
    done = environment.kdcore("run", "lm-eval.toml", cwd=here)
    assert done.returncode == 0, done.stderr
    (run,) = (here / "runs").glob("lm-eval-*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (accuracy,) = {line[key] for line in lines if (key := "eval/lm-eval/colours/acc") in line}
    assert accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert "Running loglikelihood" not in done.stderr
    verified = environment.kdcore("plugins", "lm-eval", "--verify", cwd=here)
    assert verified.returncode == 0, verified.stdout


@pytest.mark.slow
def test_a_search_ends_with_the_best_run(environment, here):
    search = ["optuna", "optuna.toml", "--search", "train.lr=1e-6,1e-2", "--trials", "3"]
    done = environment.kdcore(*search, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "best of 3: nll" in done.stdout and "--set train.lr=0.01" in done.stdout
    verified = environment.kdcore("plugins", "optuna", "--verify", cwd=here)
    assert verified.returncode == 0, verified.stdout


def test_the_index_lists_every_example():
    index = (ROOT / "docs" / "plugins.md").read_text()
    for example in ALL:
        (row,) = [line for line in index.splitlines() if f"| `examples/{example.name}`" in line]
        assert row.endswith("| kdcore 0.2.0 |")


@pytest.mark.slow
def test_an_uninstalled_example_is_named(environment, here):
    environment.pip("uninstall", "--yes", "kdcore-alpha")
    done = environment.kdcore("run", "alpha.toml", cwd=here)
    assert done.returncode == 2
    assert "kdcore-alpha is not installed: pip install 'kdcore-alpha>=0.1'" in done.stderr
    assert not (here / "runs").exists()
