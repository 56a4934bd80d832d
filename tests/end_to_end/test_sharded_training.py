"""Sharded students learn what whole ones learn, on any number of processes."""

import pytest
import tiny
import torch
from several import several
from sharded_runs import KL, RHO, outcome, recipe, train

pytestmark = pytest.mark.slow

CASES = {
    "llama-ce": {},
    "llama-tied-kl": {"objective": KL, "tie_word_embeddings": "true"},
    "llama-rho": {"objective": RHO},
    "qwen2-tied-ce": {"model_type": '"qwen2"', "tie_word_embeddings": "true"},
    "qwen2-kl": {"objective": KL, "model_type": '"qwen2"'},
    "qwen2-tied-rho": {
        "objective": RHO,
        "model_type": '"qwen2"',
        "tie_word_embeddings": "true",
        "checkpointing": "true",
    },
}
FEW = ("llama-tied-kl", "qwen2-tied-rho", "llama-ce")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of each number of processes, and the last gradients of their first one."""
    teacher = tmp_path_factory.mktemp("teacher")
    tiny.save(teacher)
    found = {}
    for processes, names in ((1, CASES), (2, CASES), (4, FEW)):
        folder = tmp_path_factory.mktemp(f"by-{processes}")
        texts = [recipe(teacher, name=name, **CASES[name]) for name in names]
        seen = several(processes, train, folder, texts)
        found[processes] = folder, dict(zip(names, seen[0], strict=True))
    return found


@pytest.mark.parametrize(
    ("processes", "name"), [*((2, name) for name in CASES), *((4, name) for name in FEW)]
)
def test_sharded_training_is_that_of_one_process(trained, processes, name):
    (one, alone), (other, shared) = trained[1], trained[processes]
    weights, records = outcome(one, name)
    found, logged = outcome(other, name)
    assert weights.keys() == found.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5)
    for key, gradient in alone[name].items():
        torch.testing.assert_close(shared[name][key], gradient, rtol=0, atol=1e-5)
    for each, expected in zip(logged, records, strict=True):
        assert each["tokens"] == expected["tokens"]
        for key in ("loss", "kept", "eval/nll"):
            assert each.get(key) == pytest.approx(expected.get(key), abs=1e-5)
