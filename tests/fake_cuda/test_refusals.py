"""What a machine with GPUs cannot do ends with a sentence that says what to type."""

import pytest
import tomli
from packaging.requirements import Requirement

from fake_cuda.scenario import ROOT, joined, python, sets
from fake_cuda.test_steps import DISTILLED, KINDS, RECIPE, recipe
from kdcore.training.setup import OLDEST_TORCH

pytestmark = pytest.mark.slow


def refused(path, *options):
    return ["refused", "kdcore", "run", path, "-q", "--out", "device", *KINDS["llama"], *options]


def test_one_gpu_without_bf16(tmp_path):
    path = recipe(tmp_path)
    alone = python(
        tmp_path,
        *joined(
            [
                refused(path, "--processes", "2"),
                refused(path, *sets(train__precision="bf16")),
                refused(path, *sets(train__bf16_weights=True)),
                refused(path, *sets(train__cuda_graphs=True, train__checkpointing=True)),
            ]
        ),
        FAKE_CUDA_DEVICES="1",
        FAKE_CUDA_BF16="no",
    )
    for said in (
        "there are 2 processes and 1 GPU here, and each process takes one; type --processes 1",
        'train.precision = "bf16": this device has no units for it',
        'train.bf16_weights = true needs precision "bf16", and on this device it is "fp16"',
        "train.cuda_graphs = true does not work with train.checkpointing; leave cuda_graphs out",
    ):
        assert said in alone, alone
    assert "Traceback" not in alone


def test_teachers_that_have_no_place(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE + DISTILLED)
    few = sets(stage__teacher__train__steps=1)
    elsewhere = sets(stage__student__teacher__device="cuda:7")
    said = python(tmp_path, *refused("small.toml", *few, *elsewhere))
    assert "this machine has no such CUDA device; leave `device` out" in said, said
    assert "Traceback" not in said


def test_a_teacher_is_quantised_on_a_gpu_only(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE + DISTILLED)
    quantised = sets(stage__student__teacher__quantise="4bit", stage__student__teacher__device="")
    few = sets(stage__teacher__train__steps=1)
    said = python(tmp_path, *refused("small.toml", *few, *quantised), FAKE_CUDA_DEVICES="0")
    assert """quantise = "4bit" needs a CUDA device, and this is 'cpu'; leave `quantise`""" in said
    assert "Traceback" not in said


def test_a_torch_that_is_too_old(tmp_path):
    said = python(tmp_path, *refused(recipe(tmp_path)), FAKE_CUDA_TORCH="2.7.1+cu126")
    assert "torch 2.7.1+cu126 is too old: kdcore needs 2.8 or later" in said, said
    assert "Traceback" not in said


def test_the_oldest_torch_is_that_of_the_requirements():
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = (each for each in map(Requirement, project["dependencies"]) if each.name == "torch")
    oldest = ".".join(map(str, OLDEST_TORCH))
    assert str(torch.specifier) == f">={oldest}"


WAITING = """
from kdcore import hookimpl


def read(module, inputs, states):
    states.sum().item()


@hookimpl
def kdcore_step_start(run, step):
    run.student.get_input_embeddings().register_forward_hook(read)
"""


def test_a_trunk_that_waits_for_the_device_cannot_be_captured(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    whole = sets(data__rows="chunk", data__block=32, train__cuda_graphs=True)
    said = python(tmp_path, *refused(recipe(tmp_path), *whole, "-p", "waiting.py"))
    assert "train.cuda_graphs = true: this student's trunk cannot be captured (operation" in said
    assert "Traceback" not in said


def test_a_step_that_is_not_finite_with_bf16_weights_and_cuda_graphs(tmp_path):
    """Its rows are tried one by one, by the graph of such rows and in its weights."""
    options = sets(data__rows="chunk", data__block=32, train__micro_batch=1, train__lr="1e30")
    both = sets(train__precision="bf16", train__bf16_weights=True, train__cuda_graphs=True)
    said = python(tmp_path, *refused(recipe(tmp_path), *options, *both))
    assert "is not finite: ce in" in said, said
    assert "Traceback" not in said
