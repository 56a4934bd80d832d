"""Component state in checkpoints: tensors as safetensors, everything else as JSON."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from kdcore.errors import PluginError
from kdcore.guard import Named, call_checked, describe_component, plugin_errors

_log = logging.getLogger("kdcore")


class Stateful(Named, Protocol):
    """A component, or engine state that is saved with components."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state for a checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        ...


_BYTES = "base64"  # bytes in JSON: {"base64": "..."}


def component_states(
    components: Mapping[str, Stateful],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The state of each component that has any: tensors by "place/key", other values by place."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for place, component in components.items():
        state = call_checked(component, "state_dict", of=Mapping)
        if not state:
            continue
        kept = values.setdefault(place, {"name": component.name, "values": {}})
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{place}/{key}"] = value.detach().contiguous()
            else:
                kept["values"][key] = _as_json(component, key, value)
    return tensors, values


def restore_components(
    components: Mapping[str, Stateful],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Mapping[str, Any]],
) -> None:
    """Restore the state of each component. Warns about state that no component claims."""
    for place, kept in values.items():
        component = components.get(place)
        if component is None or component.name != kept["name"]:
            said = "the checkpoint has state of %s %r, which the recipe does not have"
            _log.warning(said, place, kept["name"])
            continue
        begin = f"{place}/"
        own = {key[len(begin) :]: each for key, each in tensors.items() if key.startswith(begin)}
        state = {**own, **{key: _from_json(value) for key, value in kept["values"].items()}}
        with plugin_errors(component, "load_state_dict"):
            component.load_state_dict(state)


def _as_json(component: Stateful, key: str, value: object) -> Any:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, bool | int | float | str):
        return value
    raise PluginError(
        f"{describe_component(component)} has a {type(value).__name__} as {key!r} in its "
        "state_dict: tensors, numbers, strings and bytes can be saved"
    )


def _from_json(value: Any) -> Any:
    return base64.b64decode(value[_BYTES]) if isinstance(value, dict) else value
