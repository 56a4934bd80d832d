"""The patch `liger`, with a stand-in for the library: its kernels run on GPUs only."""

import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from kdcore_liger import Liger

from kdcore import RunError


@pytest.fixture
def library(monkeypatch):
    """Notes what it is asked for, and has kernels for two types."""
    asked = []

    def apply_liger_kernel_to_llama(
        rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, model=None
    ):
        asked.append((model, cross_entropy, fused_linear_cross_entropy, rms_norm))

    def apply_liger_kernel_to_glm4(rope=True, cross_entropy=True, model=None):
        """Never asked for here."""

    made = SimpleNamespace(
        apply_liger_kernel_to_llama=apply_liger_kernel_to_llama,
        apply_liger_kernel_to_glm4=apply_liger_kernel_to_glm4,
    )
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", made)
    monkeypatch.setattr("kdcore_liger.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return asked


def test_the_trunk_has_kernels_and_the_losses_stay_the_engines(library):
    model = tiny.model()
    assert Liger().apply(model) is model
    assert library == [(model, False, False, True)]


def test_a_type_without_kernels_is_named_with_those_that_have_some(library):
    with pytest.raises(RunError, match="no kernels for 'gpt2'; it has glm4, llama"):
        Liger().apply(tiny.model("gpt2"))


def test_without_a_gpu_it_says_so(library, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RunError, match=r"needs an NVIDIA GPU; take it out of \[\[student.patch\]\]"
    ):
        Liger().apply(tiny.model())
    assert library == []


def test_without_the_library_it_is_an_error(monkeypatch):
    monkeypatch.setattr("kdcore_liger.find_spec", lambda name: None)
    assert list(Liger().faults(None)) == [
        "the patch 'liger' needs liger-kernel: pip install \"kdcore[gpu]\""
    ]
