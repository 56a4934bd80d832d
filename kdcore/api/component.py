"""The base of all components: a name, options, a fingerprint and state.

A component is a small class. `@component` turns it into a strict, keyword-only pydantic dataclass;
its fields are its options in a recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar, cast, dataclass_transform

import pluggy
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

from kdcore.api.options import describe, of_options

if TYPE_CHECKING:
    from torch import Tensor

    from kdcore.data.where import Where


hookimpl = pluggy.HookimplMarker("kdcore")
_Class = TypeVar("_Class")
# A run and a stage hold components, so base classes cannot name their classes without a circle of
# imports. Overrides annotate `run: Run` and `recipe: Stage`.
AnyRun: TypeAlias = Any
AnyStage: TypeAlias = Any
_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


@dataclass_transform(kw_only_default=True, eq_default=False)
def component(cls: type[_Class]) -> type[_Class]:
    """Turn a class into a component: keyword-only, strictly typed options; unknown ones are errors.

    Option types: bool, int, float, str, Literal, list, dict, a component kind, and unions of these.
    """
    # eq=False: to pluggy, two instances with equal options are two plugins.
    made = pydantic_dataclass(kw_only=True, eq=False, config=_STRICT)(cls)
    return cast(type[_Class], made)


class Component:
    """Anything that a recipe can name. `name` identifies a subclass within its kind."""

    name: ClassVar[str]
    component_kind: ClassVar[str]  # set by the base class of each kind
    elsewhere: ClassVar[frozenset[str]] = frozenset()
    """Options that say where something is or how it is reached, such as a server's address.

    They are no part of a run's identity or fingerprint: a run started with one value resumes with
    another.
    """
    # Control arms of sweeps that use it, with the option that is measured; "": none.
    controls: ClassVar[Mapping[str, str]] = {}

    def __str__(self) -> str:
        """Name and the options that are not at their defaults."""
        return describe(self)

    def fingerprint(self) -> str:
        """A short text that identifies this component, content included; compared on resume.

        Defaults to its name and options. A component that reads files adds their contents, hashed.
        """
        return of_options(self)

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The state that a checkpoint needs so that a run resumes exactly.

        Must be the same on every process. Empty by default.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`. Called after `load`, before the first step."""

    def reads_columns(self) -> Sequence[Where]:
        """The document columns that it requires, in the form of `where` in `[[loss]]`.

        `{"domain": []}` accepts any value. Columns and values that no document has are errors
        before the run. Except for evals, a changed value stops a resuming run.
        """
        return ()

    def optional_columns(self) -> Sequence[str]:
        """The document columns that it reads where they exist.

        Data components find them in `asked_columns` and may add such columns on demand: "sft" adds
        each document's dialogue as `dialogue`.
        """
        return ()

    def faults(self, recipe: AnyStage) -> Iterable[str]:
        """Conflicts between this component and the rest of its `Stage`, one sentence each."""
        return ()

    def missing(self) -> Iterable[str]:
        """Missing files and folders, one sentence each. Called before a stage begins."""
        return ()
