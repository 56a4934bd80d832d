"""Which types an option may have: those that a recipe can spell, and component kinds."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from kdcore.api import KINDS

SPELT = "bool, int, float, str, Literal, list, dict, a component kind, or a union of these"

_PLAIN = (bool, int, float, str, list, dict, NoneType)


def is_option_type(annotation: Any) -> bool:
    """Whether a recipe can give a value of this type. None is allowed as a default's type."""
    if annotation in _PLAIN or annotation in KINDS.values():
        return True
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return True
    if origin is Annotated:
        return is_option_type(arguments[0])
    if origin is dict:
        return arguments[0] is str and is_option_type(arguments[1])
    return origin in (list, Union, UnionType) and all(map(is_option_type, arguments))
