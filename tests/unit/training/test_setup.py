from types import SimpleNamespace

import engine
import given
import numpy as np
import pytest
import tiny
import torch
from engine import Held, term
from kdcore_ensemble import Ensemble
from kdcore_losses import ForwardKL

from kdcore import RunError, Teacher, component
from kdcore.api.options import iter_components
from kdcore.api.train_options import TrainOptions
from kdcore.errors import UsageError
from kdcore.models.loading import precision_of
from kdcore.objective.teachers import load_teachers
from kdcore.training.setup import check_shards, enable_checkpointing, make_accelerator, steps_of

pytestmark = pytest.mark.slow

LENGTHS = np.array([10, 20, 30, 40] * 25)  # 100 rows of 25 tokens


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 1.0}, 12),
        ({"epochs": 2.0}, 25),
        ({"epochs": 0.08}, 1),
        ({"epochs": 0.5, "batch": 5}, 10),
        ({"epochs": 0.07, "batch": 7}, 1),  # 7.000000000000001 rows
        ({"epochs": 0.29, "batch": 29}, 1),  # 28.999999999999996
        ({"tokens": 200}, 1),
        ({"tokens": 201}, 2),
        ({"tokens": 2500}, 13),
    ],
)
def test_steps(options, steps):
    """Epochs run into one another: floor(rows x epochs / batch)."""
    assert steps_of(TrainOptions(lr=0.1, **options), 100, LENGTHS) == steps


@pytest.mark.parametrize(
    ("epochs", "batch", "instead"),
    [(0.02, 8, "batch=2"), (1.0, 200, "batch=100"), (0.001, 8, "steps=1")],
)
def test_less_than_a_step_is_an_error_with_a_way_out(epochs, batch, instead):
    with pytest.raises(RunError, match=rf"{epochs} epochs of 100 rows .* --set train\.{instead}$"):
        steps_of(TrainOptions(lr=0.1, epochs=epochs, batch=batch), 100, LENGTHS)
    key, _, value = instead.partition("=")
    kept = {"epochs": epochs} if key == "batch" else {}
    assert steps_of(TrainOptions(lr=0.1, **kept, **{key: int(value)}), 100, LENGTHS) == 1


GPU = torch.device("cuda")


def test_precision():
    assert precision_of("fp32", GPU) == "no"
    assert precision_of("bf16", tiny.CPU) == "bf16"


def test_a_cpu_computes_in_float32_even_if_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert precision_of("auto", tiny.CPU) == "no"


def test_a_mac_trains_on_its_cpu_and_says_so(monkeypatch, caplog):
    from accelerate.state import AcceleratorState

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with caplog.at_level("INFO", logger="kdcore"):
            accelerator = make_accelerator(TrainOptions(lr=1e-3, steps=1))
        assert accelerator.device.type == "cpu"
        assert "kdcore does not support MPS" in caplog.text
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_emulated_bf16_is_none(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert precision_of("auto", GPU) == "fp16"


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_checkpointed_activations_change_nothing(kind):
    def step(student):
        terms = [term(ForwardKL())]
        teacher = Held(given.model(seed=1))
        return engine.step(student, given.packed_rows(), terms, teacher=teacher, micro_batch=3)

    plain = step(given.model(kind))
    student = given.model(kind)
    enable_checkpointing(student)
    again = step(student)
    assert any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
    assert again.terms == plain.terms
    for name, gradient in plain.gradients.items():
        assert torch.equal(again.gradients[name], gradient)


@component
class Counting(Teacher):
    name = "counting"
    loaded: int = 0

    def load(self, run):
        self.loaded += 1


@component
class Wrapping(Counting):
    """Loads the teacher in it when it must."""

    name = "wrapping"
    loads_members = True
    teacher: Teacher


def test_every_teacher_is_loaded_once_but_for_those_that_another_one_loads():
    inner, members = Counting(), [Counting(), Counting()]
    wrapping = Wrapping(teacher=Ensemble(members=[inner]))
    components = [
        one
        for top in (wrapping, Ensemble(members=members), members[0])
        for one in iter_components(top)
    ]
    load_teachers(SimpleNamespace(), list(dict.fromkeys(components)))
    assert (inner.loaded, wrapping.loaded) == (0, 1)
    assert [member.loaded for member in members] == [1, 1]


def test_a_torch_that_cannot_save_a_sharded_student_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.0+cu128")
    check_shards(TrainOptions(steps=1, lr=1e-3, shard="full"), processes=1)
    check_shards(TrainOptions(steps=1, lr=1e-3), processes=2)
    with pytest.raises(UsageError, match=r'train.shard = "full" needs 2.9 or later; type pip'):
        check_shards(TrainOptions(steps=1, lr=1e-3, shard="full"), processes=2)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    check_shards(TrainOptions(steps=1, lr=1e-3, shard="full"), processes=2)
