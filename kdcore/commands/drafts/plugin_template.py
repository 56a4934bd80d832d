"""The package of `kdcore new plugin`: one component, its tests, and publishing files."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.util import find_spec
from string import Template

from kdcore.cli.main import plugin_manager
from kdcore.errors import UsageError
from kdcore.plugin.discovery import commands, reserved_modules

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_PARTS: Mapping[str, str] = {
    "student": '[student.config]\nmodel_type = "llama"\nhidden_size = 64\nintermediate_size = 128\n'
    "num_hidden_layers = 2\nnum_attention_heads = 2",
    "tokenizer": '[tokenizer]\nuse = "bpe"\nvocab_size = 400',
    "data": '[data]\nuse = "stories"\nstories = 200\nblock = 64',
    "loss": '[[loss]]\nuse = "ce"',
    "train": "[train]\nlr = 1e-3\nsteps = 20\nbatch = 8",
}
"""Tables of a small recipe that runs anywhere in seconds."""

_KL = '[[loss]]\nuse = "ce"\n\n[[loss]]\nuse = "kl"'
_CHANGES: Mapping[str, Mapping[str, str]] = {
    "data": {"data": '[data]\nuse = "$name"\nblock = 64'},
    "tokenizer": {"tokenizer": '[tokenizer]\nuse = "$name"'},
    "teacher": {"teacher": '[teacher]\nuse = "$name"', "loss": _KL},
    "loss": {
        "teacher": '[teacher]\nuse = "self"  # the student as it began',
        "loss": '[[loss]]\nuse = "ce"\n\n[[loss]]\nuse = "$name"\nweight = 0.5',
    },
    "selection": {"selection": '[selection]\nuse = "$name"\nshare = 0.6'},
    "rollout": {"rollout": '[rollout]\nuse = "$name"\nmax_new_tokens = 24\nprompt_tokens = 8'},
    "patch": {"patch": '[[student.patch]]\nuse = "$name"'},
    "eval": {"eval": '[[eval]]\nuse = "$name"'},
    "logger": {"log": '[[log]]\nuse = "$name"'},
    "executor": {"sweep": '[sweep]\nseed = [0, 1]\n\n[sweep."$name"]\nworkers = 2'},
    "verb": {},
}
"""Tables that differ for a kind."""

KINDS = tuple(_CHANGES)


def check_name(name: str, kind: str = "loss") -> None:
    """Raise UsageError for an invalid package name, or one that would hide another package."""
    module, short = _module(name), _short(name)
    if not _NAME.fullmatch(name) or keyword.iskeyword(module):
        raise UsageError(
            f"{name!r} is no name for a plugin: small letters, digits and single hyphens, "
            "beginning with a letter, such as kdcore-mine"
        )
    own = {point.name for point in entry_points(group="kdcore") if _is_own(point.value)}
    if module in reserved_modules() or short in own:
        raise UsageError(f"{name!r} is a plugin of kdcore's own: choose another name")
    if module in sys.stdlib_module_names or find_spec(module) is not None:
        raise UsageError(f"there is a module {module!r} already, which yours would hide")
    taken = commands() if kind == "verb" else plugin_manager(None).provided(kind)
    if short in taken or (kind == "verb" and short in ("run", "check")):
        raise UsageError(f"there is a {kind} {short!r} already: choose another name")


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in reserved_modules()


def files_of(name: str, kind: str = "loss") -> Mapping[str, str]:
    """Path in the package -> text."""
    module, short = _module(name), _short(name)
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "CHANGELOG.md": "CHANGELOG.md",
        "LICENSE": "LICENSE",
        ".github/workflows/test.yml": "workflow.yml",
        f"{module}.py": f"{kind}.py",
        f"tests/test_{module}.py": f"test_{kind}.py",
    }
    words = _words(name, kind)
    made = {path: Template(_text(each)).substitute(words) for path, each in templates.items()}
    return {**made, f"{short}.toml": Template(_recipe(kind)).substitute(words)}


def _words(name: str, kind: str) -> dict[str, str]:
    short = _short(name)
    function = short.replace("-", "_")
    words = {
        "distribution": name.replace("_", "-"),
        "module": _module(name),
        "name": short,
        "cls": "".join(map(str.capitalize, short.removesuffix(f"-{kind}").split("-")))
        + kind.capitalize(),
        "function": function if not keyword.iskeyword(function) else f"{function}_",
        "a_kind": {"data": "Data", "eval": "An eval", "executor": "An executor"}.get(
            kind, f"A {kind}"
        ),
        "run": f"kdcore sweep {short}.toml --on {short}"
        if kind == "executor"
        else f"kdcore run {short}.toml",
        "look": f"kdcore {short} --help" if kind == "verb" else f"kdcore plugins {short} --verify",
    }
    return {**words, "entry_point": Template(_entry_point(kind)).substitute(words)}


def _entry_point(kind: str) -> str:
    if kind == "verb":
        return '[project.entry-points."kdcore.commands"]\n$name = "$module:$function"'
    return (
        "# The name is what `kdcore plugins` lists and `-p no:$name` blocks; the value is the "
        'module.\n[project.entry-points.kdcore]\n$name = "$module"'
    )


def _recipe(kind: str) -> str:
    """A recipe template that uses the component."""
    head = '# $run\n\nrequires = ["kdcore>=0.1", "$distribution>=0.1"]'
    parts = {**_PARTS, **_CHANGES[kind]}
    order = [*_PARTS, *(each for each in parts if each not in _PARTS)]
    return "\n\n".join([head, *(parts[each] for each in order)]) + "\n"


def _text(template: str) -> str:
    return (
        files("kdcore.commands.drafts").joinpath("templates", f"{template}.txt").read_text("utf-8")
    )


def _module(name: str) -> str:
    return name.replace("-", "_")


def _short(name: str) -> str:
    """The short name of plugin and component: "mine" of "kdcore-mine"."""
    return name.replace("_", "-").removeprefix("kdcore-")
