"""How large chunks are and whether losses are compiled is settled once for a run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import whole_runs

from kdcore.cli.main import plugin_manager
from kdcore.objective.losses import per_token
from kdcore.training import micro_batch, setup

GIB = 2**30


def run(batch=8, steps=10, vocabulary=151_665, lengths=(100, 300), **train):
    given = {"chunk": "auto", "compile": "auto", "batch": batch, "drawn": batch}
    options = SimpleNamespace(**given | train)
    data = SimpleNamespace(block=512)
    return SimpleNamespace(
        recipe=SimpleNamespace(train=options, data=data),
        data=data,
        batch=batch,
        drawn_in_epoch=lambda: len(lengths),
        processes=2,
        steps=steps,
        chunk=16,
        vocabulary=vocabulary,
        device=torch.device("cpu"),
        laid=lambda split: SimpleNamespace(lengths=np.array(lengths)),
    )


@pytest.fixture
def free(monkeypatch):
    monkeypatch.setattr(micro_batch, "_free", lambda device: 64 * GIB)


@pytest.fixture
def compiled(monkeypatch):
    made = []
    monkeypatch.setattr(micro_batch, "compiled_values_of", lambda losses, chunk: made.append(chunk))
    monkeypatch.setattr(micro_batch, "_has_compiler", lambda: True)
    return made


def test_a_chunk_is_what_the_recipe_says(free):
    assert micro_batch.chunk_of(run(chunk=33)) == 33


def test_a_chunk_is_no_larger_than_a_process_has_tokens(free):
    assert micro_batch.chunk_of(run()) == 128
    assert micro_batch.chunk_of(run(vocabulary=1000)) == 4 * 512
    assert micro_batch.chunk_of(run(vocabulary=1000, batch=3)) == 2 * 512


def test_a_chunk_is_smaller_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(micro_batch, "_free", lambda device: GIB)
    assert micro_batch.chunk_of(run()) == 64


def test_free_memory_is_asked_of_the_machine():
    assert GIB / 16 < micro_batch._free(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"compile": True}, True),
        ({"compile": False, "steps": 10**9}, False),
        ({"steps": 3}, False),  # 200 tokens x 8 rows x 3 steps x 151,665
        ({"steps": 5}, True),
        ({"lengths": (), "steps": 1}, False),  # a stream: 512 tokens x 8 rows x 1 step x 151,665
        ({"lengths": (), "steps": 2}, True),
    ],
)
def test_losses_are_compiled_where_it_pays(options, wanted, compiled):
    micro_batch.values_for(run(**options))([])
    assert compiled == ([16] if wanted else [])


def test_nothing_is_compiled_without_a_compiler(compiled, monkeypatch):
    monkeypatch.setattr(micro_batch, "_has_compiler", lambda: False)
    micro_batch.values_for(run(steps=10**6))([])
    assert not compiled


def test_a_compiler_is_found_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not micro_batch._has_compiler()
    (tmp_path / "clang++").touch(mode=0o755)
    assert micro_batch._has_compiler()


DISTILLED = """
[stage.teacher]

[stage.student.teacher]
use = "hf"
model = "@teacher"

[[stage.student.loss]]
use = "kl"
"""


def test_a_run_that_compiles_does_so_in_its_evaluations(tmp_path, monkeypatch):
    asked = []

    def noted(run):
        return lambda losses: (
            asked.append(losses) or (lambda *each: [per_token(loss, *each) for loss in losses])
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup, "per_token_for", noted)
    text = whole_runs.recipe_text({"train.steps": 1}, DISTILLED)
    whole_runs.run(plugin_manager([]), text)
    assert any(asked)
