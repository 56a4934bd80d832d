"""A BabyLM corpus in folders of a data set on the hub, through the real client."""

import os
import subprocess
import sys

import pytest
from standin_hub import serving

pytestmark = pytest.mark.slow

ASK = """
from kdcore import RunError
from kdcore_babylm import BabyLM
try:
    data = BabyLM(**{options})
    print([list(data.texts(split)) for split in ("train", "validation")])
except RunError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    folder = root / "datasets" / "owner" / "babylm"
    for name in ("babylm_10M/cbt.train", "babylm_10M/README.md", "babylm_dev/cbt.dev"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name} .")
    with serving(root) as (url, asked):
        hub = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}

        def ask(offline="0", **options):
            environment = {
                **os.environ,
                **hub,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_OFFLINE": offline,
            }
            command = [sys.executable, "-c", ASK.format(options=options)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        yield ask, asked


GIVEN = {"path": "owner/babylm/babylm_10M", "validation": "owner/babylm/babylm_dev"}


def test_a_corpus_comes_from_the_hub_once(ask):
    ask, asked = ask
    assert ask(**GIVEN) == "[['cbt.train.'], ['cbt.dev.']]"
    assert not [line for line in asked if "README" in line and "resolve" in line]
    assert ask(offline="1", **GIVEN) == "[['cbt.train.'], ['cbt.dev.']]"


def test_what_the_hub_lacks_is_reported(ask):
    ask, _ = ask
    assert "in folders; name one of them: owner/babylm/babylm_10M, owner/b" in ask(
        path="owner/babylm"
    )
    assert "the data set 'owner/babylm' on the hub has no folder 'absent'" in ask(
        path="owner/babylm/absent"
    )
    assert "the hub has no such data set for you; fetch the BabyLM" in ask(path="owner/absent")
