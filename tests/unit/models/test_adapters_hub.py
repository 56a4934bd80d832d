"""Adapters that lie on the hub, with the base that they name: loaded by their names alone."""

import os
import subprocess
import sys

import pytest
import tiny
import torch
from adapted import save_adapter
from standin_hub import serving

from kdcore.models.causal_lm import random_ids

pytest.importorskip("peft")
pytestmark = pytest.mark.slow

ASKS = """
import sys, torch
from kdcore import load_config, load_model, load_tokenizer, model_fingerprint
from kdcore_hf import HfTeacher

name, options = sys.argv[1], {"adapter": sys.argv[2]} if len(sys.argv) > 2 else {}
model = load_model(name, dtype=torch.float32, **options).eval()
ids = torch.tensor(eval(sys.stdin.read()))
with torch.no_grad():
    print(float(model(input_ids=ids, use_cache=False).logits.double().sum()))
print(HfTeacher(model=name, **options).fingerprint())
print(load_config(name).vocab_size, len(load_tokenizer(name)))
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """What kdcore makes of a name on the hub, and what is right."""
    root, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    tiny.save(root / "models/some/base")
    model = tiny.model(vocabulary=300)
    adapted = save_adapter(model, root / "models/some/adapter", base="some/base")
    ids = random_ids(adapted, tiny.CPU)
    with torch.no_grad():
        right = float(adapted(input_ids=ids, use_cache=False).logits.double().sum())
    with serving(root) as (url, _):
        places = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}

        def ask(*names, **more):
            environment = {**os.environ, **places, "HF_HUB_DISABLE_XET": "1", **more}
            return subprocess.run(
                [sys.executable, "-c", ASKS, *names],
                env=environment,
                input=repr(ids.tolist()),
                capture_output=True,
                text=True,
                timeout=300,
            )

        yield ask, right


@pytest.mark.parametrize("names", [("some/adapter",), ("some/base", "some/adapter")], ids=len)
def test_by_name(ask, names):
    ask, right = ask
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):  # then it is on this machine
        done = ask(*names, **more)
        assert done.returncode == 0, done.stderr
        said, fingerprint, sizes = done.stdout.splitlines()
        assert float(said) == pytest.approx(right, rel=1e-6)
        assert "some/adapter@0123456789" in fingerprint and "some/base@012345" in fingerprint
        assert sizes == "300 300"


def test_an_adapter_that_the_hub_has_not(ask):
    done = ask[0]("some/base", "some/gone")
    assert "RunError: cannot load the adapter 'some/gone'" in done.stderr
