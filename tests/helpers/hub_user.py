"""Somebody with a token of the stand-in hub, whose commands are processes of their own."""

import os
import subprocess
import sys
from contextlib import contextmanager

from standin_hub import serving

TOKEN = "hf_notATokenOfAnybody123"
_LINES = """
import shlex, sys
from kdcore.cli import main as cli
for line in sys.argv[1:]:
    sys.argv = shlex.split(line)
    if code := cli._exit_code():
        sys.exit(code)
"""


class User:
    """A folder to work in, and an environment that knows the hub."""

    def __init__(self, url, root, home, asked):
        self.models, self.home, self.asked = root / "models", home, asked
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_TOKEN": TOKEN,
            "KDCORE_PLUGINS_OFF": "panel",
        }

    def kdcore(self, *arguments):
        """One command."""
        return self.done([sys.executable, "-m", "kdcore", *arguments])

    def lines(self, text):
        """Commands of kdcore, a line each, until one fails; in one process, which saves time."""
        return self.done([sys.executable, "-c", _LINES, *text.splitlines()])

    def done(self, words):
        """A program that came to its end."""
        return subprocess.run(
            words,
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )


@contextmanager
def user_of(root, home):
    """Works with a hub that has what lies in `root`."""
    with serving(root) as (url, asked):
        yield User(url, root, home, asked)
