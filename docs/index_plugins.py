"""Write docs/plugins.md, the index of distributions named kdcore-*, each installed and verified.

python docs/index_plugins.py                  those of this repository and those on PyPI
python docs/index_plugins.py --offline        those of this repository

Each is installed into an environment of its own, which borrows all else from this one.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import urllib.request
from collections.abc import Sequence
from importlib.metadata import Distribution, distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "plugins.md"
NAMES = "https://pypi.org/simple/"
HEAD = """\
# Plugins to install

This page lists the distributions named `kdcore-*`: what each brings and with which release of
kdcore it was last verified. `python docs/index_plugins.py` writes it: it installs each into an
environment of its own and runs `kdcore plugins NAME --verify` for each of its plugins, and `--help`
of each of its verbs. To be listed, publish a distribution named `kdcore-...` on PyPI
([Write a plugin](writing-a-plugin.md) makes one).

| distribution | brings | is | verified |
|---|---|---|---|
"""


def page(sources: Sequence[str]) -> str:
    """The whole page: a row for each distribution, by name."""
    return HEAD + "".join(f"{row(source)}\n" for source in sources)


def row(source: str) -> str:
    """A distribution that pip installs from a folder or by its name."""
    name = name_of(source)
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder), source)
        (found,) = distributions(name=name, path=[str(purelib(python))])
        plugins = [each.name for each in found.entry_points if each.group == "kdcore"]
        verbs = [each.name for each in found.entry_points if each.group == "kdcore.commands"]
        brings = [part for plugin in plugins for part in components(python, plugin)]
        brings += [f"verb `{verb}`" for verb in verbs]
        kept = [ask(python, "plugins", plugin, "--verify") for plugin in plugins]
        kept += [ask(python, verb, "--help") for verb in verbs]
        said = "no: a check fails" if any(each.returncode for each in kept) else release()
        summary = found.metadata["Summary"]
        return f"| {linked(found, source)} | {', '.join(brings)} | {summary} | {said} |"


def release() -> str:
    """That of kdcore which verifies."""
    return f"kdcore {version('kdcore')}"


def name_of(source: str) -> str:
    """What a distribution is called: a folder's pyproject.toml says so."""
    project = Path(source, "pyproject.toml")
    return tomllib.loads(project.read_text())["project"]["name"] if project.is_file() else source


def environment(folder: Path, source: str) -> Path:
    """The Python of a new environment with this distribution; it borrows from the current one."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, source], check=True)
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(ROOT)}
    borrowed.add(str(ROOT / "plugins"))
    (purelib(python) / "borrowed.pth").write_text("\n".join(sorted(borrowed)))
    return python


def purelib(python: Path) -> Path:
    """Where the environment keeps what is installed into it."""
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())


def components(python: Path, plugin: str) -> list[str]:
    """What the plugin brings, such as "teacher `ngram`"."""
    done = ask(python, "plugins", plugin, "--json")
    found = json.loads(done.stdout)["components"] if done.returncode == 0 else {}
    return [f"{kind} `{name}`" for kind, names in found.items() for name in names]


def ask(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a verb of kdcore in the environment."""
    command = [str(python), "-m", "kdcore", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def linked(found: Distribution, source: str) -> str:
    """Its name and release: a link to PyPI, or the folder in this repository."""
    name = found.metadata["Name"]
    if Path(source).is_dir():
        return f"`examples/{name}` {found.version}"
    return f"[{name}](https://pypi.org/project/{name}) {found.version}"


def on_pypi() -> list[str]:
    """The names of all distributions on PyPI that begin with kdcore-."""
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    with urllib.request.urlopen(urllib.request.Request(NAMES, headers=accept)) as answer:
        projects = json.load(answer)["projects"]
    return [each["name"] for each in projects if each["name"].lower().startswith("kdcore-")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offline", action="store_true")
    own = sorted(str(each.parent) for each in ROOT.glob("examples/*/pyproject.toml"))
    TARGET.write_text(page([*own, *([] if parser.parse_args().offline else on_pypi())]))
