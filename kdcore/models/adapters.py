"""PEFT adapters."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from kdcore.errors import RunError
from kdcore.models.causal_lm import eval_mode, random_ids
from kdcore.models.locations import file_on_hub, location_of, refuse_pickle
from kdcore.models.logit_transforms import allclose

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_log = logging.getLogger("kdcore")
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def adapter_base(name: str) -> str | None:
    """The base model that an adapter names, "" if it names none; None for a full model.

    `name` is a folder or a name on the hub. A folder that also holds a full model counts as that
    model; transformers applies the adapter to it.
    """
    place = Path(location_of(name))
    if os.path.isdir(place):
        path = place / _CONFIG
        if not path.is_file() or (place / "config.json").is_file():
            return None
    else:
        on_hub = file_on_hub(name, _CONFIG)
        if on_hub is None:
            return None
        path = Path(on_hub)
    config = json.loads(path.read_text(encoding="utf-8"))
    return config.get("base_model_name_or_path") or ""


def with_adapter(model: PreTrainedModel, adapter: str, base: str) -> PreTrainedModel:
    """The model, loaded from `base`, with a frozen adapter.

    It stays unmerged, in float32: half-precision weights would round most of it away.
    """
    path = location_of(adapter)
    refuse_pickle(adapter)
    with _explained(adapter):
        from peft import PeftConfig, PeftModel
        from peft.utils import load_peft_weights

        config = PeftConfig.from_pretrained(path)
        if not os.path.isdir(path) and file_on_hub(adapter, _WEIGHTS) is None:
            raise RunError(
                f"cannot load the adapter {adapter!r}: it has no {_WEIGHTS}, and pickled weights "
                "are not loaded, as they may run code"
            )
        weights = load_peft_weights(path, device="cpu")
    if config.is_prompt_learning:
        raise RunError(
            f"the adapter {adapter!r} is a prompt adapter; kdcore supports only adapters of weights"
        )
    named = config.base_model_name_or_path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing keys are reported below, in one sentence
            adapted = PeftModel.from_pretrained(
                model, path, config=config, torch_device="cpu", ignore_mismatched_sizes=True
            )
        unfit = _unfit(adapted, weights, config)
        if getattr(config, "trainable_token_indices", None):
            _said(cast("PreTrainedModel", adapted))  # peft finds out here what it cannot combine
    except ValueError as error:
        first = str(error).split("\n")[0]
        unfit = "its modules are not there" if "not found in the base" in first else first
    if unfit:
        of = f"; it was made for {named!r}" if named else ""
        raise RunError(f"the adapter {adapter!r} does not fit {base!r}: {unfit}{of}")
    if named and Path(named).name != Path(base).name:
        _log.warning("the adapter %r was made for %r and is applied to %r", adapter, named, base)
    return cast("PreTrainedModel", adapted)


@contextmanager
def _explained(adapter: str) -> Iterator[None]:
    """A loading error of an adapter, in one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except ImportError as error:
        said = f'the adapter {adapter!r} needs peft: pip install "kdcore[lora]"'
        raise RunError(said) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        raise RunError(f"cannot load the adapter {adapter!r}: {first}") from error


def _unfit(adapted: Any, weights: Mapping[str, Tensor], config: Any) -> str | None:
    """Why an adapter's weights do not fit the model; None if they do."""
    from peft.utils import get_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for name, wanted in expected.items():
        if name not in weights:
            return f"it lacks {_short(name)}"
        shape, fits = list(weights[name].shape), list(wanted.shape)
        if shape != fits:
            return f"its {_short(name)} is {shape}, and {fits} belongs there"
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    more = [name for name in weights if name not in expected and f"{kind}_" in name]
    return f"its {_short(more[0])} has no place there" if more else None


def _short(name: str) -> str:
    return repr(name.removeprefix("base_model.model."))


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model, fully trainable, with its adapter merged into the weights.

    The merged model has no name or path of its own. Raises RunError if its logits differ from those
    of the adapted model.
    """
    merge = getattr(model, "merge_and_unload", None)
    if merge is None:
        return model
    adapted: Any = model
    before = _said(model)
    _untie(adapted.get_base_model())
    made: PreTrainedModel = merge()
    made.name_or_path = made.config._name_or_path = ""
    made.requires_grad_(True)
    _warn_untied(made)
    _refuse_another(before, _said(made))
    return made


def _untie(model: PreTrainedModel) -> None:
    """Untie head and embeddings where they share a matrix and one of them is adapted.

    Merging into one would change the other too.
    """
    ends: list[Any] = [model.get_output_embeddings(), model.get_input_embeddings()]  # type: ignore[no-untyped-call]
    head, embeddings = map(_plain, ends)
    shared = getattr(head, "weight", None)
    if shared is not None and shared is embeddings.weight and ends != [head, embeddings]:
        head.weight = nn.Parameter(shared.detach().clone(), requires_grad=False)


def _warn_untied(model: PreTrainedModel) -> None:
    """Mark them as untied in the config, or the saved model would tie them again."""
    config, head = model.config, model.get_output_embeddings()  # type: ignore[no-untyped-call]
    shares = getattr(head, "weight", None) is model.get_input_embeddings().weight
    if shares or not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return
    config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
    _log.info("the adapter unties the head from the embeddings, which its base ties")


def _plain(module: Any) -> Any:
    """The module that an adapter wraps, or the module itself."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def _said(model: PreTrainedModel) -> Tensor:
    """The logits of a few ids."""
    with eval_mode(model):
        ids = random_ids(model, model.get_input_embeddings().weight.device)  # type: ignore[arg-type]
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _refuse_another(adapted: Tensor, merged: Tensor) -> None:
    if not allclose(merged, adapted, times=10):
        raise RunError(
            "the adapter cannot be merged: the merged model gives other outputs; merge it with "
            "peft's merge_and_unload, and name the result as student.model"
        )
