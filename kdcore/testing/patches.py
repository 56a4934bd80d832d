"""Check the contract of patches."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcore.api.student import Patch
from kdcore.testing.claims import close, require
from kdcore.testing.fakes import tiny_llama

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_patch(patch: Patch) -> None:
    """Assert that a patched Llama can be trained, saved and loaded.

    `finish` must not change the model's outputs.
    """
    model = _applied(patch)
    require(hasattr(model, "save_pretrained"), patch, "returned no model from `apply`")
    logits = _logits(model)
    require(bool(logits.isfinite().all()), patch, "makes logits that are not finite")
    require(close(logits, _logits(_applied(patch))), patch, "makes another model the second time")
    _check_training(patch, model)
    trained = _logits(model)
    finished = patch.finish(model)
    require(hasattr(finished, "save_pretrained"), patch, "returned no model from `finish`")
    require(close(trained, _logits(finished)), patch, "changes the model's logits in `finish`")
    _check_saving(patch, finished)


def _applied(patch: Patch) -> PreTrainedModel:
    """Apply the patch as a run does: random initialisation comes from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return patch.apply(tiny_llama())


def _check_training(patch: Patch, model: PreTrainedModel) -> None:
    """One step of gradient descent on the trainable parameters."""
    some = [each for each in model.parameters() if each.requires_grad]
    require(bool(some), patch, "leaves no parameter that can be trained")
    model.train()
    gradients = torch.autograd.grad(_loss(model), some, allow_unused=True)
    model.train(False)
    finite = all(bool(each.isfinite().all()) for each in gradients if each is not None)
    require(finite, patch, "makes gradients that are not finite")
    require(any(each is not None for each in gradients), patch, "leaves parameters no gradient")
    with torch.no_grad():
        for parameter, gradient in zip(some, gradients, strict=True):
            if gradient is not None:
                parameter.sub_(0.01 * gradient)


def _check_saving(patch: Patch, model: PreTrainedModel) -> None:
    from transformers import AutoModelForCausalLM

    with TemporaryDirectory(prefix="kdcore-testing-") as folder:
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder)
    same = close(_logits(model), _logits(again))
    require(same, patch, "leaves a model that computes something else once saved and loaded")


def _loss(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(24).view(2, 12)
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    logits: Tensor = model(input_ids=torch.arange(12)[None]).logits
    return logits
