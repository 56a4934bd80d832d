"""The first steps where the modules and calls of POSIX are missing, as on Windows."""

import os
import subprocess
import sys

import pytest
from whole_runs import STAGES

pytestmark = pytest.mark.slow

HIDE = """
import builtins, multiprocessing, os, signal, sys
import datasets, torch._dynamo, transformers  # which may use what is there
import transformers.models.llama.modeling_llama
inner, hidden = builtins.__import__, {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty"}

def import_(name, globals=None, locals=None, fromlist=(), level=0):
    who = (globals or {}).get("__name__", "")
    if name in hidden and who.partition("_")[0].partition(".")[0] == "kdcore":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return inner(name, globals, locals, fromlist, level)

builtins.__import__ = import_
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM"):
    delattr(signal, name)
for name in ("posix_fallocate", "sched_getaffinity", "getuid", "fchmod", "mkfifo"):
    delattr(os, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
assert not any(name.startswith("kdcore") for name in sys.modules)
from kdcore.cli.main import main
sys.argv = ["kdcore", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "quickstart"],
        ["run", "r.toml", "-p", "no:panel"],
        ["run", "r.toml", "--fresh", "--set", "stage.small.train.batch=2"],
        ["show", "last"],
    ],
)
def test_the_first_steps(tmp_path_factory, arguments):
    folder = tmp_path_factory.getbasetemp() / "without-posix"
    folder.mkdir(exist_ok=True)
    (folder / "r.toml").write_text(STAGES)
    done = subprocess.run(
        [sys.executable, "-c", HIDE, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "USERNAME": "somebody"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob("runs/*/.owner.json*"))
