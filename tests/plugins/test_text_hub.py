"""Data sets on the hub, through the real client and a stand-in for the hub."""

import os
import subprocess
import sys

import pytest
from standin_hub import serving

pytestmark = pytest.mark.slow

README = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train-*}
  - {split: validation, path: small/valid-*}
- config_name: other
  data_files: other/*
---
"""
ASK = """
from kdcore import RunError
from kdcore_text import Text
try:
    data = Text(**{options})
    print([list(data.texts(split)) for split in ("train", "validation")])
except RunError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    from datasets import Dataset

    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    folder = root / "datasets" / "owner" / "lines"
    for name, lines in {
        "small/train-0": ["one\n", "", "two"] + ["more"] * 2,
        "small/valid-0": ["three"],
        "other/data": ["four"],
    }.items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"text": lines}).to_parquet(path)
    (folder / "README.md").write_text(README)
    with serving(root) as (url, _):
        hub = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        hub |= {"HF_HUB_DISABLE_XET": "1", "HF_DATASETS_CACHE": str(home / "datasets")}

        def ask(**options):
            environment = {**os.environ, **hub, **options.pop("environment", {})}
            command = [sys.executable, "-c", ASK.format(options=options)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        yield ask


def test_a_data_set_comes_from_the_hub_once(ask):
    given = {"path": "owner/lines", "config": "small", "fraction": 0.6}
    assert ask(**given) == "[['one\\n', 'two'], ['three']]"
    assert ask(**given, environment={"HF_HUB_OFFLINE": "1"}) == "[['one\\n', 'two'], ['three']]"


def test_slices_of_splits_are_the_hubs(ask):
    given = {"path": "owner/lines", "config": "small", "split": "train[:1]"}
    assert ask(**given, validation="train[2:3]") == "[['one\\n'], ['two']]"


def test_what_the_hub_lacks_is_reported(ask):
    said = ask(path="owner/absent")
    assert said.startswith("cannot load the data set 'owner/absent': neither a file or folder in /")
    assert " nor a data set on the hub (or a private one: type `hf auth login`); set path" in said
    said = ask(path="owner/lines")
    assert "Please pick one among the available configs: ['small', 'other']; set config in" in said
    said = ask(path="owner/lines", config="other")
    assert said.endswith("set split, validation or validation_share in [data]")
