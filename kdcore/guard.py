"""Guarded calls into plugin code: errors name the plugin, and results are type-checked."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, Protocol

from kdcore.errors import KdcoreError, PluginError, is_out_of_memory


class Named(Protocol):
    """The attributes of a component that messages about it need."""

    name: ClassVar[str]
    component_kind: ClassVar[str]


@contextmanager
def plugin_errors(component: Named, method: str) -> Iterator[None]:
    """Runs a component's method. Other exceptions become PluginError; KdcoreErrors pass through."""
    try:
        with stdout_to_stderr():
            yield
    except KdcoreError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise PluginError(
            f"{describe_component(component)} raised {type(error).__name__} in {method}: {error}"
        ) from error


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirects prints to stderr: stdout is for results, and may be parsed as JSON."""
    if threading.current_thread() is not threading.main_thread():  # stdout is shared by all threads
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def call_checked(
    component: Named, method: str, *arguments: Any, of: type | tuple[type, ...]
) -> Any:
    """The result of a component's method, which must have one of these types."""
    with plugin_errors(component, method):
        found = getattr(component, method)(*arguments)
    if not isinstance(found, of):
        types = of if isinstance(of, tuple) else (of,)
        wanted = " or ".join(_in_words(each) for each in types)
        raise wrong_return(component, method, _shown(found), wanted)
    return found


def call_checked_list(component: Named, method: str, *arguments: Any) -> list[str]:
    """The texts that a component's method yields."""
    with plugin_errors(component, method):
        found = list(getattr(component, method)(*arguments))
    for each in found:
        if not isinstance(each, str):
            raise wrong_return(component, method, f"{_shown(each)} among its texts", "texts only")
    return found


def wrong_return(component: Named, method: str, found: str, expected: str) -> PluginError:
    """The error for a method whose result breaks its contract."""
    return PluginError(
        f"{describe_component(component)} returned {found} from {method}, expected {expected}"
    )


@contextmanager
def inputs_unchanged(component: Named, method: str, *inputs: object) -> Iterator[None]:
    """Raise PluginError if a method modifies its input tensors.

    Tensors count their writes on the host, so this never syncs the device.
    """
    before = _writes(inputs)
    yield
    if _writes(inputs) != before:
        raise PluginError(
            f"{describe_component(component)} wrote into the tensors that {method} was "
            "given, expected them unchanged: work on a copy, and leave out the methods that end in "
            "an underscore"
        )


def _writes(values: Iterable[object]) -> list[int]:
    import torch

    return [each._version for each in values if isinstance(each, torch.Tensor)]


def describe_component(component: Named) -> str:
    """A component by kind, name and definition: loss 'kl' (kdcore_losses.kl.KL)."""
    return f"{component.component_kind} {component.name!r} ({defined_in(type(component))})"


def defined_in(cls: type) -> str:
    """Where a class is defined: its module, or the plugin's file."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if cls.__module__.startswith("kdcore_plugin_file_") and file:  # a generated name
        return f"{Path(file).name}: {cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _in_words(kind: type) -> str:
    return "None" if kind is type(None) else _with_article(kind.__name__)


def _shown(found: object) -> str:
    return "None" if found is None else _with_article(type(found).__name__)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def needs_teacher(component: Named) -> bool:
    """Whether it uses the run's teacher. Losses, evals and selections can say so."""
    says: object = getattr(component, "needs_teacher", False)
    return call_checked(component, "needs_teacher", of=bool) if callable(says) else bool(says)
