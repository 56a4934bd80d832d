"""Naming whose code failed: a component's exception becomes an error with plugin and component."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kdcore.api import KINDS, Component
from kdcore.errors import KdcoreError, PluginError


@contextmanager
def blame(component: Component, method: str) -> Iterator[None]:
    """While this component's method runs. What is already told to a person passes through."""
    import torch

    try:
        yield
    except (KdcoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise PluginError(
            f"{described(component)} raised {type(error).__name__} in {method}: {error}"
        ) from error


def described(component: Component) -> str:
    """A component by kind, name and where it is defined: loss 'kl' (kdcore_losses.kl.KL)."""
    kind = next(word for word, base in KINDS.items() if isinstance(component, base))
    made = type(component)
    return f"{kind} {component.name!r} ({made.__module__}.{made.__qualname__})"
