"""docs/after-the-run.md: every command and snippet in it is executed, in order, as it stands there.

The hub is a stand-in. The commands of lm-eval and vLLM are skipped where these are not installed.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import yaml
from documents import snippets
from hub_user import user_of

pytestmark = pytest.mark.slow

SNIPPETS = snippets("after-the-run.md")
OTHERS = {"lm-eval": "lm_eval", "vLLM": "vllm"}  # heading -> module
PROGRAMS = {"kdcore": "kdcore", "lm-eval": "lm_eval", "vllm": "vllm.entrypoints.cli.main"}
SCRIPTS = [snippet for snippet in SNIPPETS if snippet.language == "sh"]


def text_of(language):
    (found,) = [snippet.text for snippet in SNIPPETS if snippet.language == language]
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the files that the document shows; the recipe was run."""
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    tiny.save(root / "models" / "HuggingFaceTB" / "SmolLM2-135M")
    (home / "fox.toml").write_text(text_of("toml"))
    (home / "pairs.jsonl").write_text(text_of("json"))
    (home / "pairs.yaml").write_text(text_of("yaml"))
    programs = home / "bin"
    programs.mkdir()
    for name, module in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    with user_of(root, home) as hub:
        hub.environment["PATH"] = f"{programs}:{hub.environment['PATH']}"
        kdcore(hub, SCRIPTS[0].text)
        yield hub


def kdcore(hub, lines):
    return succeeded(hub.lines(lines))


def bash(hub, script, *arguments):
    return succeeded(hub.done(["bash", "-ec", script, *arguments]))


def succeeded(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_snippet_is_executed_or_written_to_a_file():
    languages = [snippet.language for snippet in SNIPPETS]
    assert {*languages} == {"toml", "sh", "json", "python", "yaml"}
    assert SCRIPTS[0].text.startswith("kdcore run fox.toml\n")
    commands = {line.split()[0] for each in SCRIPTS for line in each.text.splitlines()}
    assert commands == {"kdcore", "lm-eval", "vllm", "FINAL=$(ls"}


@pytest.mark.parametrize(
    "script", [each for each in SCRIPTS[1:] if each.heading not in OTHERS], ids=lambda s: s.heading
)
def test_commands_of_kdcore(script, here):
    assert kdcore(here, script.text)
    if script.heading == "Publish":
        (final,) = (here.home / "runs").glob("fox.student-*/final")
        pushed = here.models / "me" / "fox"
        assert {path.name for path in pushed.iterdir()} == {path.name for path in final.iterdir()}


def test_what_is_said_of_measuring_again(here):
    (folder,) = (here.home / "runs").glob("fox.student-*")
    before = (folder / "metrics.jsonl").read_text().splitlines()
    (last, *_) = [each for each in map(json.loads, before[::-1]) if "eval/nll" in each]
    kdcore(here, "kdcore eval fox.student")
    added = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert added["again"] is True and added["eval/nll"] == last["eval/nll"]
    kept = (folder / "metrics.jsonl").read_text()
    changed = "kdcore eval fox.student --set train.eval_rows=all"
    kdcore(here, f"{changed}\nkdcore eval fox.student --step 20")
    assert (folder / "metrics.jsonl").read_text() == kept


def test_the_snippet_of_transformers(here):
    said = bash(here, f'exec {sys.executable} -c "$1"', "-", text_of("python"))
    assert said.startswith("Once upon a time") and len(said) > len("Once upon a time\n")


def scripts_under(heading):
    if find_spec(OTHERS[heading]) is None:
        pytest.skip(f"{heading} is not installed")
    return [each.text for each in SCRIPTS if each.heading == heading]


def test_lm_eval_finds_the_same(here):
    (script,) = scripts_under("lm-eval")
    bash(here, script)
    (results,) = (here.home / "lm-eval").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]["pairs"]["acc,none"]
    (folder,) = (here.home / "runs").glob("fox.student-*")
    added = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert found == pytest.approx(added["eval/blimp/pairs"])


def test_vllm_knows_the_command(here):
    # A server does not come to an end: this much can be tried.
    (script,) = scripts_under("vLLM")
    bash(here, script.replace("vllm serve $FINAL", "vllm serve --help > /dev/null; echo $FINAL"))


def test_the_task_is_yaml():
    task = yaml.safe_load(text_of("yaml"))
    assert task["task"] == "pairs" and Path(task["dataset_kwargs"]["data_files"]["validation"])
