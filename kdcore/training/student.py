"""The student: created or loaded, patched, in the dtypes that training needs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdcore.api.student import Patch
from kdcore.errors import RunError, UsageError
from kdcore.guard import call_checked
from kdcore.models.adapters import merged
from kdcore.models.loading import dtype_of, load_config, load_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.api.student import StudentOptions


def make_student(
    options: StudentOptions,
    tokenizer: PreTrainedTokenizerBase,
    patches: Iterable[Patch],
    *,
    seed: int,
    device: torch.device,
) -> PreTrainedModel:
    """The student on the device, patched. Trained parameters have float32 master weights.

    An adapter is loaded as its base with the adapter merged.
    """
    seed_all(seed)
    if options.model is not None:
        loaded = load_model(
            options.model,
            dtype=dtype_of(options.dtype, device),
            device=device,
            attention=options.attention,
            key="student.model",
        )
        model = merged(loaded)
    else:
        model = from_config(options, tokenizer)
        model.to(device)  # type: ignore[arg-type]  # transformers' stub lacks devices
    return patched(model, patches)


def seed_all(seed: int) -> None:
    """Seed every global generator: libraries and plugins may draw from these."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def patched(model: PreTrainedModel, patches: Iterable[Patch]) -> PreTrainedModel:
    """The model with its patches, and float32 masters for trained parameters."""
    for patch in patches:
        model = call_checked(patch, "apply", model, of=torch.nn.Module)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("the student has no trainable parameters: all of them are frozen")
    return model


def finished(model: PreTrainedModel, patches: Iterable[Patch]) -> PreTrainedModel:
    """The model to save, after `Patch.finish`."""
    for patch in patches:
        model = call_checked(patch, "finish", model, of=torch.nn.Module)
    return model


def from_config(options: StudentOptions, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A fresh model in float32 on the CPU: the same seed gives the same weights everywhere."""
    from transformers import AutoModelForCausalLM

    config = config_of(options, tokenizer)
    arguments = {"attn_implementation": options.attention} if options.attention else {}
    with _explained(config.model_type):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32, **arguments
        )
    return model


def student_config(
    options: StudentOptions, tokenizer: PreTrainedTokenizerBase | None
) -> PretrainedConfig:
    """The config of the model to load, or of the fresh one, with the tokenizer's ids."""
    if options.model is not None:
        return load_config(options.model, key="student.model")
    assert tokenizer is not None, "a fresh student has no other"
    return config_of(options, tokenizer)


def checked_config(
    options: StudentOptions, tokenizer: PreTrainedTokenizerBase | None
) -> PretrainedConfig:
    """The same config, of a student to be trained. RunError if it asks for auxiliary losses."""
    config = student_config(options, tokenizer)
    check_balance(config, options)
    return config


def config_of(options: StudentOptions, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The fresh student's config: dropout 0 and the tokenizer's ids, unless set in the recipe."""
    from transformers import AutoConfig

    typed = dict(options.config or {})
    model_type = str(typed.pop("model_type"))
    try:
        plain = AutoConfig.for_model(model_type)
    except ValueError:
        raise UsageError(
            f"[student.config] model_type = {model_type!r}: transformers knows no such model"
        ) from None
    _refuse_unknown(typed, plain, model_type)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    no_dropout = {
        key: 0.0
        for key, value in plain.to_dict().items()
        if key.endswith(("dropout", "pdrop", "dropout_prob")) and isinstance(value, float)
    }
    with _explained(model_type):
        config: PretrainedConfig = AutoConfig.for_model(model_type, **(ids | no_dropout | typed))
    return config


@contextmanager
def _explained(model_type: str) -> Iterator[None]:
    """transformers' objection to a config, in one sentence."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, ValueError, KeyError, ImportError) as error:
        lines = str(error).strip().split("\n")
        said = f"there is no {lines[0]}" if isinstance(error, KeyError) else lines[0]
        if isinstance(error, StrictDataclassError):
            said = lines[-1].partition("Error: ")[2] or lines[-1]  # the first ones say where
        raise UsageError(f"[student.config] makes no {model_type!r} model: {said}") from error


def _refuse_unknown(typed: dict[str, Any], plain: PretrainedConfig, model_type: str) -> None:
    """transformers ignores unknown config keys; a typo must not train another model."""
    from difflib import get_close_matches

    known = {*plain.to_dict(), *plain.attribute_map}
    if hasattr(plain, "rope_parameters"):
        known.add("rope_theta")  # becomes a part of rope_parameters
    for key in typed.keys() - known:
        near = get_close_matches(key, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"[student.config] {key!r} is not an option of {model_type!r}{hint}")


def check_length(model: PreTrainedModel, block: int) -> None:
    """Raise RunError if rows are longer than the model's maximum sequence length."""
    # Multimodal models have the positions of text in a nested config.
    reach = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if reach is not None and block > reach:
        raise RunError(
            f"data.block = {block} is longer than the student's {reach} positions; type "
            f"--set data.block={reach}, or give the model more positions"
        )


_BALANCE = ("router_aux_loss_coef", "aux_loss_coef", "router_z_loss_coef", "moe_loss_weight")
_ALWAYS = ("z_loss_coefficient",)


def check_balance(config: PretrainedConfig, options: StudentOptions) -> None:
    """Reject a config that requests auxiliary losses, which the recipe would not train.

    transformers adds the load-balancing loss of a mixture of experts to its own loss if the config
    has output_router_logits; `[student] balance = "none"` trains without it.
    """
    asked = dict(_balance_losses(config))
    if asked and options.balance == "config":
        said = ", ".join(f"{key} = {value:g}" for key, value in asked.items())
        raise RunError(
            f"the student's config adds a loss of its routers or logits ({said}), but only the "
            "recipe's losses are trained; type --set student.balance=none to train "
            "without it"
        )


def _balance_losses(config: PretrainedConfig) -> Iterator[tuple[str, float]]:
    """The nonzero coefficients of the auxiliary losses that transformers would add."""
    text = config.get_text_config()
    parts = [config, text, getattr(text, "ffn_config", None)]
    on = any(getattr(part, "output_router_logits", False) for part in parts)
    for key in _ALWAYS + (_BALANCE if on else ()):
        for part in parts:
            value = getattr(part, key, None)
            if isinstance(value, int | float) and value:
                yield key, float(value)
