"""Models, configs and tokenizers by name, in explicit dtypes.

dtypes are always set (a checkpoint's own would apply otherwise). Code from a model's repository
runs only where the recipe trusts that model by name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from kdcore.checksums import refuse_changed
from kdcore.errors import RunError
from kdcore.models.locations import is_absent, is_trusted, loading_error, location_of, refuse_pickle
from kdcore.sharding.wrapping import shard
from kdcore.terminal.bars import progress
from kdcore.terminal.libraries import DownloadBar, without_bars

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    attention: str | None = None,
    quantise: Literal["8bit", "4bit"] | None = None,
    adapter: str | None = None,
    offload: bool = False,
    sharded: bool = False,
    key: str | None = None,
) -> PreTrainedModel:
    """A causal language model from a folder or the hub, on the device.

    `adapter` is a PEFT adapter to apply; if `name` is an adapter itself, it is applied to the base
    that it names. Adapters stay unmerged. `offload` leaves the layers on the CPU until they run.
    With `sharded`, all processes of the run together load a frozen model and divide its weights.
    `attention` is transformers' `attn_implementation`. `key` is the recipe key that names the
    model, for advice in errors.
    """
    refuse_changed(Path(location_of(name)))
    device = torch.device(device)
    if offload and device.type == "cpu":
        raise RunError(
            f"offload = true keeps the layers of {name!r} out of a GPU's memory, and it runs on "
            "the CPU; leave offload out"
        )
    base, own = _parts(name)
    if own is not None and adapter is not None:
        raise RunError(f"{name!r} is an adapter; leave {adapter!r} out, or name the base as model")
    place = torch.device("cpu") if offload or sharded else device
    known = key if own is None else None
    model = _load(base, dtype, place, attention, quantise, key=known)
    if adapter is not None or own is not None:
        from kdcore.models.adapters import with_adapter

        model = with_adapter(model, adapter or name, base)
    if offload:
        from kdcore.models.offload import offload_layers

        offload_layers(model, device)
    if sharded:
        shard(model.eval().requires_grad_(False), device)  # type: ignore[no-untyped-call]
    return model


def _parts(name: str) -> tuple[str, str | None]:
    """The name of the model, and of the adapter on it where `name` is an adapter."""
    base = _base_of(name)
    if base == "":
        raise RunError(
            f"the adapter {name!r} does not name its base model; name that as `model` and the "
            "adapter as `adapter`"
        )
    return (name, None) if base is None else (base, name)


def _base_of(name: str) -> str | None:
    from kdcore.models.adapters import adapter_base

    return None if is_absent(name) else adapter_base(name)


def _load(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    attention: str | None,
    quantise: Literal["8bit", "4bit"] | None,
    *,
    key: str | None,
) -> PreTrainedModel:
    """A full model."""
    refuse_pickle(name)
    arguments: dict[str, Any] = {"dtype": dtype}
    if attention is not None:
        arguments["attn_implementation"] = attention
    if quantise is not None:
        arguments["quantization_config"] = _quantisation(quantise, dtype, device)
    if device.type != "cpu":
        arguments["device_map"] = {"": device}
    with loading_error(name, key), without_bars(), progress(f"loading {name}"):
        from transformers import AutoModelForCausalLM
        from transformers.utils.hub import DownloadKwargs

        if "tqdm_class" in DownloadKwargs.__annotations__:  # later than transformers 5.0
            arguments["tqdm_class"] = DownloadBar

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location_of(name),
            output_loading_info=True,
            trust_remote_code=is_trusted(name),
            use_safetensors=True,
            **arguments,
        )
    model: PreTrainedModel
    model, info = loaded
    if info["missing_keys"]:
        first = min(info["missing_keys"])
        raise RunError(
            f"cannot use {name!r}: its files lack {first!r}, which would stay random; name a "
            "causal language model with all of its weights"
        )
    return model


def load_config(name: str, *, key: str | None = None) -> PretrainedConfig:
    """A model's config, without its weights; for an adapter, that of its base."""
    name = _parts(name)[0]
    with loading_error(name, key):
        from transformers import AutoConfig

        config: PretrainedConfig = AutoConfig.from_pretrained(
            location_of(name), trust_remote_code=is_trusted(name)
        )
    return config


def load_tokenizer(name: str, *, key: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub model; for an adapter without one, that of its base."""
    refuse_changed(Path(location_of(name)))
    base, adapter = _parts(name)
    if adapter is not None and not _has_tokenizer(adapter):
        name = base
    with loading_error(name, key):
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            location_of(name), trust_remote_code=is_trusted(name)
        )
        # A broken tokenizer would fail in the middle of the data or of an evaluation.
        tokenizer(["a"], add_special_tokens=False)
        _ = tokenizer.all_special_ids
    return tokenizer


def _has_tokenizer(adapter: str) -> bool:
    from kdcore.models.locations import file_on_hub

    place, file = Path(location_of(adapter)), "tokenizer_config.json"
    return (
        (place / file).is_file() if os.path.isdir(place) else file_on_hub(adapter, file) is not None
    )


def model_fingerprint(name: str, *, base: bool = True) -> str:
    """Identifies the weights: a hash of a folder's content, or the hub's revision.

    An adapter's includes that of its base; without `base`, it is of the adapter alone.
    """
    model = _base_of(name)
    if model and base:
        return f"{model_fingerprint(name, base=False)} on {model_fingerprint(model)}"
    place = Path(location_of(name))
    if os.path.isdir(place):
        from kdcore.hashing import folder_hash

        return folder_hash(place)
    with loading_error(name, None):
        from transformers.utils.hub import cached_file

        config = cached_file(name, "config.json" if model is None else "adapter_config.json")
    return f"{name}@{Path(config).parent.name}" if config else name


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of frozen weights: "auto" is half precision on a GPU only."""
    if name != "auto":
        return _DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_units else torch.float16


def _quantisation(
    quantise: Literal["8bit", "4bit"], dtype: torch.dtype, device: torch.device
) -> Any:
    from importlib.util import find_spec

    if device.type != "cuda":
        raise RunError(
            f'quantise = "{quantise}" needs a CUDA device, and this is {device.type!r}; leave '
            "`quantise` out"
        )
    if find_spec("bitsandbytes") is None:
        raise RunError(f'quantise = "{quantise}" needs bitsandbytes: pip install "kdcore[gpu]"')
    from transformers import BitsAndBytesConfig

    if quantise == "8bit":
        options: dict[str, Any] = {"load_in_8bit": True}
    else:
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        options["bnb_4bit_compute_dtype"] = dtype
    return BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(name: str, device: torch.device) -> str:
    """accelerate's name of the recipe's precision on this device."""
    on_gpu = device.type == "cuda"
    has_units = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and on_gpu and not has_units:
        raise RunError(
            'train.precision = "bf16": this device has no units for it; leave precision out, which '
            'is "fp16" here'
        )
    if name != "auto":
        return {"fp32": "no"}.get(name, name)
    if not on_gpu:
        return "no"  # bf16 on a CPU without hardware support is ten times slower
    return "bf16" if has_units else "fp16"
