"""What all components share: a name, options, a fingerprint and state.

A component is a small class with a name and options. `@component` makes it a keyword-only, strict
pydantic dataclass; its fields are its options in a recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast, dataclass_transform

import pluggy
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

from kdcore.api.options import describe, of_options

if TYPE_CHECKING:
    from torch import Tensor

    from kdcore.data.where import Where


hookimpl = pluggy.HookimplMarker("kdcore")
_Class = TypeVar("_Class")
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


@dataclass_transform(kw_only_default=True, eq_default=False)
def component(cls: type[_Class]) -> type[_Class]:
    """Turn a class into a component: keyword-only options, strictly typed, unknown ones refused.

    Option types: bool, int, float, str, Literal, list, dict, a component kind, and unions of these.
    """
    # eq=False: two instances with equal options are two plugins to pluggy.
    made = pydantic_dataclass(kw_only=True, eq=False, config=_STRICT)(cls)
    return cast(type[_Class], made)


class Component:
    """Anything that a recipe can name. Subclasses of one kind are told apart by `name`."""

    name: ClassVar[str]
    component_kind: ClassVar[str]  # set by the base class of each kind
    elsewhere: ClassVar[frozenset[str]] = frozenset()
    """Options that say where something is or how patiently it is asked, such as a server's address.

    They count neither for a run's identity nor for its fingerprint: a run that was begun with one
    value resumes with another.
    """
    # Controls of sweeps that take it, each with the option for what is measured: "" for none.
    controls: ClassVar[Mapping[str, str]] = {}

    def __str__(self) -> str:
        """Name and the options that are not at their defaults."""
        return describe(self)

    def fingerprint(self) -> str:
        """What this component is, content included, as a short text; compared when a run is
        continued.

        By default its name and its options. A component that reads files adds what it read.
        """
        return of_options(self)

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """What a checkpoint must hold of this component so that a run resumes exactly.

        The same on every process. Nothing by default.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, after `load` and before the first step."""

    def reads_columns(self) -> Sequence[Where]:
        """The columns of documents that it asks for, as `where` in `[[loss]]` does.

        No values, `{"domain": []}`: any. What no document has is a fault before the run, and but
        for evals another value in them makes a run that resumes stop and ask.
        """
        return ()

    def optional_columns(self) -> Sequence[str]:
        """The columns that it reads where documents have them.

        Data finds them in `asked_columns` and may give documents such a column only then: "sft"
        gives the dialogue of each as `dialogue`.
        """
        return ()

    def faults(self, recipe: Any) -> Iterable[str]:
        """What is wrong between this component and the rest of its `Stage`, one sentence each."""
        return ()

    def missing(self) -> Iterable[str]:
        """The files and folders it cannot find, one sentence each; asked before a stage begins."""
        return ()
