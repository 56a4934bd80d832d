"""Distributions that a recipe or a plugin asks for, compared with those that are installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.metadata import requires as requires_of

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from kdcore.discovery import OWN


def check_requirements(requires: Iterable[str]) -> list[str]:
    """What is missing of `["kdcore>=0.2", "kdcore-alpha"]`: one message for each that is unmet."""
    messages = []
    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            messages.append(f"{text!r} is not a requirement such as 'kdcore>=0.1': {reason}")
        else:
            messages += _unmet(requirement)
    return messages


def own_version_notes(plugin: Distribution) -> Sequence[str]:
    """What to tell about a plugin whose distribution asks for another version of kdcore."""
    try:
        requirements = [Requirement(text) for text in plugin.requires or ()]
    except InvalidRequirement:
        return []
    mine = [each for each in requirements if canonicalize_name(each.name) == OWN]
    return [message for each in mine for message in _unmet(each)]


def _unmet(requirement: Requirement, extra: str = "") -> Sequence[str]:
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return []
    requirement.marker = None
    try:
        installed = distribution(requirement.name).version
    except PackageNotFoundError:
        return [f"{requirement.name} is not installed: pip install '{requirement}'"]
    if not requirement.specifier.contains(installed, prereleases=True):
        wanted = f"{requirement.name}{requirement.specifier}"
        return [f"{wanted} is needed, {installed} is installed: pip install '{requirement}'"]
    return [message for name in sorted(requirement.extras) for message in _extra(requirement, name)]


def _extra(requirement: Requirement, extra: str) -> list[str]:
    """The unmet requirements of one extra, such as `kdcore[lora]`."""
    needed = [Requirement(text) for text in requires_of(requirement.name) or ()]
    only_here = [each for each in needed if each.marker and not each.marker.evaluate({"extra": ""})]
    return [message for each in only_here for message in _unmet(each, extra)]
