"""Models and tokenizers from a folder or the Hugging Face hub, and what to say where they are not.

Types are always explicit (a checkpoint's own would be used otherwise), and code from a model's
repository is never run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from kdcore.errors import RunError

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
    key: str | None = None,
) -> PreTrainedModel:
    """A causal language model from a folder or the hub, on the device.

    `attention` is transformers' `attn_implementation`. `key` is the recipe key that names the
    model, for the advice in an error.
    """
    device = torch.device(device)
    arguments: dict[str, Any] = {"dtype": dtype}
    if attention is not None:
        arguments["attn_implementation"] = attention
    if quantise is not None:
        arguments["quantization_config"] = _quantisation(quantise, dtype, device)
    if device.type != "cpu":
        arguments["device_map"] = {"": device}
    with _explained(name, key), progress_bars(shown=sys.stderr.isatty()):
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            _place(name), output_loading_info=True, trust_remote_code=False, **arguments
        )
    model: PreTrainedModel
    model, told = loaded
    if told["missing_keys"]:
        first = min(told["missing_keys"])
        raise RunError(f"cannot use {name!r}: its files lack {first!r}, which would stay random")
    return model


def load_config(name: str, *, key: str | None = None) -> PretrainedConfig:
    """The config of a model, without its weights."""
    with _explained(name, key):
        from transformers import AutoConfig

        config: PretrainedConfig = AutoConfig.from_pretrained(_place(name), trust_remote_code=False)
    return config


@contextmanager
def without_downloads() -> Iterator[None]:
    """While this lasts, the hub's libraries use what is on this machine already."""
    import datasets.config
    import huggingface_hub.constants

    # Both read the environment when they are imported, and these names from then on.
    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def load_tokenizer(name: str, *, key: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a model on the hub."""
    with _explained(name, key):
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            _place(name), trust_remote_code=False
        )
    return tokenizer


def model_fingerprint(name: str) -> str:
    """What the weights are: a hash of a folder's content, or the hub's revision."""
    place = Path(_place(name))
    if place.is_dir():
        from kdcore.fingerprints import of_folder

        return of_folder(place)
    with _explained(name, None):
        from transformers.utils.hub import cached_file

        config = cached_file(name, "config.json")
    return f"{name}@{Path(config).parent.name}" if config else name


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The type for weights that are not trained: "auto" is a half type on a GPU only."""
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
        raise RunError(f'quantise = "{quantise}" needs a CUDA device, and this is {device.type!r}')
    if find_spec("bitsandbytes") is None:
        raise RunError(f'quantise = "{quantise}" needs bitsandbytes: pip install "kdcore[gpu]"')
    from transformers import BitsAndBytesConfig

    if quantise == "8bit":
        options: dict[str, Any] = {"load_in_8bit": True}
    else:
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        options["bnb_4bit_compute_dtype"] = dtype
    return BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]


def _place(name: str) -> str:
    """A folder's path with `~` filled in, or the name on the hub."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _is_path(name: str) -> bool:
    """Whether this cannot be a name on the hub, which has one slash at most."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


@contextmanager
def _explained(name: str, key: str | None) -> Iterator[None]:
    """What goes wrong in loading `name`, in one sentence."""
    place = Path(_place(name))
    if _is_path(name) and not place.is_dir():
        raise RunError(f"cannot load {name!r}: there is no such folder")
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        why = _folder_fault(error) if place.is_dir() else _hub_fault(error, key)
        raise RunError(f"cannot load {name!r}: {why}") from error
    except Exception as error:
        # safetensors has an error class of its own, straight from Exception.
        if type(error).__name__ != "SafetensorError":
            raise
        raise RunError(f"cannot load {name!r}: {_folder_fault(error)}") from error


@contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Whether transformers draws its progress bars in a block: not into logs, not over a panel."""
    from transformers.utils import logging as told

    if shown or not told.is_progress_bar_enabled():
        yield
        return
    told.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        told.enable_progress_bar()  # type: ignore[no-untyped-call]


def _folder_fault(error: Exception) -> str:
    return f"the folder is there, but {_first_line(error)}"


def _hub_fault(error: Exception, key: str | None) -> str:
    instead = f"give a local folder with --set {key}=PATH" if key else "name a local folder"
    causes = {type(cause).__name__ for cause in _chain(error)}
    if "GatedRepoError" in causes:
        return (
            "not a folder here, and the hub lets nobody in unasked; ask there, then hf auth login"
        )
    if "RepositoryNotFoundError" in causes:
        return f"not a folder here, and the hub has no such model (or a private one); {instead}"
    if isinstance(error, OSError) and causes & _UNREACHABLE:
        return f"not a folder here and the hub cannot be reached; download it, or {instead}"
    return _first_line(error)


_UNREACHABLE = {
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
