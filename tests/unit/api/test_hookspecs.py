import re
from pathlib import Path

import pytest

from kdcore import Logger, component, hookimpl
from kdcore.plugin.manager import PluginManager
from kdcore.plugin.validation import EVENTS, PROVIDERS

pytestmark = pytest.mark.slow

PLUGIN = """
from kdcore import {base}, component, hookimpl

@component
class Made({base}):
    name = "made"

@hookimpl
def {hook}():
    return [Made]
"""


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=[plugin.name for plugin in PluginManager().plugins])


def brings(folder: Path, hook: str, base: str) -> bool:
    """Whether a plugin's component of this base class arrives through the hook, and only there."""
    file = folder / "one_component.py"
    file.write_text(PLUGIN.format(base=base, hook=hook))
    host = PluginManager(off=[plugin.name for plugin in PluginManager().plugins], files=[file])
    found = {kind: list(host.provided(kind)) for kind in PROVIDERS.values()}
    return found == {kind: ["made"] if kind == PROVIDERS[hook] else [] for kind in found}


def test_hook_kdcore_data(tmp_path):
    assert brings(tmp_path, "kdcore_data", "Data")


def test_hook_kdcore_tokenizers(tmp_path):
    assert brings(tmp_path, "kdcore_tokenizers", "Tokenizer")


def test_hook_kdcore_teachers(tmp_path):
    assert brings(tmp_path, "kdcore_teachers", "Teacher")


def test_hook_kdcore_losses(tmp_path):
    assert brings(tmp_path, "kdcore_losses", "Loss")


def test_hook_kdcore_selections(tmp_path):
    assert brings(tmp_path, "kdcore_selections", "Selection")


def test_hook_kdcore_rollouts(tmp_path):
    assert brings(tmp_path, "kdcore_rollouts", "Rollout")


def test_hook_kdcore_executors(tmp_path):
    assert brings(tmp_path, "kdcore_executors", "Executor")


def test_hook_kdcore_patches(tmp_path):
    assert brings(tmp_path, "kdcore_patches", "Patch")


def test_hook_kdcore_evals(tmp_path):
    assert brings(tmp_path, "kdcore_evals", "Eval")


def test_hook_kdcore_loggers(tmp_path):
    assert brings(tmp_path, "kdcore_loggers", "Logger")


@component
class Everything(Logger):
    """Names every argument of every event."""

    name = "everything"

    def __post_init__(self):
        self.heard = {}

    @hookimpl
    def kdcore_run_start(self, run):
        self.heard = {"run": run}

    @hookimpl
    def kdcore_step_start(self, run, step):
        self.heard = {"run": run, "step": step}

    @hookimpl
    def kdcore_log(self, run, record):
        self.heard = {"run": run, "record": record}

    @hookimpl
    def kdcore_written(self, run, step, completions):
        self.heard = {"run": run, "step": step, "completions": completions}

    @hookimpl
    def kdcore_scores(self, run, step, scores):
        self.heard = {"run": run, "step": step, "scores": scores}

    @hookimpl
    def kdcore_checkpoint(self, run, step, path):
        self.heard = {"run": run, "step": step, "path": path}

    @hookimpl
    def kdcore_run_end(self, run, error):
        self.heard = {"run": run, "error": error}

    @hookimpl
    def kdcore_runs_end(self, folders):
        self.heard = {"folders": folders}


def hears(host: PluginManager, hook: str, **arguments: object) -> bool:
    logger = Everything()
    with host.listening([logger]):
        host.emit(hook, **arguments)
    return logger.heard == arguments


def test_hook_kdcore_run_start(host):
    assert hears(host, "kdcore_run_start", run="run")


def test_hook_kdcore_step_start(host):
    assert hears(host, "kdcore_step_start", run="run", step=3)


def test_hook_kdcore_log(host):
    assert hears(host, "kdcore_log", run="run", record="record")


def test_hook_kdcore_written(host):
    assert hears(host, "kdcore_written", run="run", step=3, completions=["answer"])


def test_hook_kdcore_scores(host):
    assert hears(host, "kdcore_scores", run="run", step=3, scores={"nll": 1.0})


def test_hook_kdcore_checkpoint(host):
    assert hears(host, "kdcore_checkpoint", run="run", step=3, path=Path("checkpoint"))


def test_hook_kdcore_run_end(host):
    assert hears(host, "kdcore_run_end", run="run", error=None)


def test_hook_kdcore_runs_end(host):
    assert hears(host, "kdcore_runs_end", folders=[Path("runs/one")])


def test_every_hook_has_a_test():
    tests = re.findall(r"def test_hook_(\w+)", Path(__file__).read_text())
    assert set(tests) == EVENTS | PROVIDERS.keys()
