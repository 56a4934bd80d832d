"""PEFT adapters: told from models, put onto their base unmerged, and merged where one trains on."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kdcore.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger("kdcore")
_CONFIG = "adapter_config.json"


def adapter_base(name: str) -> str | None:
    """The model that an adapter names as its base, "" if it names none; None for a whole model.

    `name` is a folder or a name on the hub. A folder that holds a whole model too is that model:
    transformers puts the adapter onto it.
    """
    place = Path(name).expanduser()
    if place.is_dir():
        path = place / _CONFIG
        if not path.is_file() or (place / "config.json").is_file():
            return None
    else:
        on_hub = _on_hub(name)
        if on_hub is None:
            return None
        path = Path(on_hub)
    config = json.loads(path.read_text(encoding="utf-8"))
    return config.get("base_model_name_or_path") or ""


def _on_hub(name: str) -> str | None:
    from transformers.utils.hub import cached_file

    found: str | None = None
    with suppress(OSError, ValueError):  # loading it says what is wrong
        found = cached_file(
            name,
            _CONFIG,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return found


def with_adapter(model: PreTrainedModel, adapter: str, base: str) -> PreTrainedModel:
    """The model, which was loaded from `base`, with an adapter that is not trained.

    It stays unmerged, in float32: half weights would round most of it away.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise RunError(f'the adapter {adapter!r} needs peft: pip install "kdcore[lora]"') from error
    path = str(Path(adapter).expanduser())
    try:
        config = PeftConfig.from_pretrained(path)
        if config.is_prompt_learning:
            raise RunError(f"the adapter {adapter!r} is a prompt; kdcore takes those of weights")
        with warnings.catch_warnings():
            # Missing weights are told below, in a sentence.
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(
                model, path, config=config, torch_device="cpu", ignore_mismatched_sizes=True
            )
        unfit = _unfit(adapted, path, config)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RunError):
            raise
        first = str(error).strip().split("\n")[0]
        unfit = "its modules are not there" if "not found in the base" in first else None
        if unfit is None:
            raise RunError(f"cannot load the adapter {adapter!r}: {first}") from error
    named = config.base_model_name_or_path
    if unfit:
        of = f"; it was made for {named!r}" if named else ""
        raise RunError(f"the adapter {adapter!r} does not fit {base!r}: {unfit}{of}")
    if named and Path(named).name != Path(base).name:
        _log.warning("the adapter %r was made for %r and is put onto %r", adapter, named, base)
    return cast("PreTrainedModel", adapted)


def _unfit(adapted: Any, path: str, config: Any) -> str | None:
    """What keeps the weights of an adapter from being those of the model, all of them."""
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    def shapes(weights: Mapping[str, Any]) -> dict[str, list[int]]:
        return {name: list(weight.shape) for name, weight in weights.items()}

    expected = shapes(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    given = shapes(load_peft_weights(path, device="cpu"))
    for name, shape in expected.items():
        short = name.removeprefix("base_model.model.")
        if name not in given:
            return f"it lacks {short!r}"
        if given[name] != shape:
            return f"its {short!r} is {given[name]}, and {shape} belongs there"
    kind = str(getattr(config.peft_type, "value", config.peft_type)).lower()
    more = [name for name in given if name not in expected and f"{kind}_" in name]
    short = more[0].removeprefix("base_model.model.") if more else ""
    return f"its {short!r} has no place there" if more else None


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """An ordinary model, all of it trained: an adapter on it becomes part of its weights.

    What was merged lies nowhere by a name.
    """
    merge = getattr(model, "merge_and_unload", None)
    if merge is None:
        return model
    made: PreTrainedModel = merge()
    made.name_or_path = made.config._name_or_path = ""
    made.requires_grad_(True)
    return made
