"""The package that `kdcore new plugin` makes: one loss, its test, and what installs them."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from string import Template

from kdcore.cli.main import plugin_manager
from kdcore.errors import UsageError
from kdcore.plugin.discovery import reserved_modules

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


def check_name(name: str) -> None:
    """Refuse what cannot be a package, or would hide one that is there."""
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
    if short in plugin_manager(None).provided("loss"):
        raise UsageError(f"there is a loss {short!r} already: choose another name")


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in reserved_modules()


def files_of(name: str) -> Mapping[str, str]:
    """Path in the package -> text."""
    short, module = _short(name), _module(name)
    words = {
        "distribution": name.replace("_", "-"),
        "module": module,
        "name": short,
        "cls": "".join(word.capitalize() for word in short.split("-")) + "Loss",
        "test": f"test_{module}",
    }
    return {path: Template(text).substitute(words) for path, text in _files(module).items()}


def _module(name: str) -> str:
    return name.replace("-", "_")


def _short(name: str) -> str:
    """What the plugin and its loss are called: "mine" of "kdcore-mine"."""
    return name.replace("_", "-").removeprefix("kdcore-")


def _files(module: str) -> Mapping[str, str]:
    return {
        "pyproject.toml": _PYPROJECT,
        f"{module}.py": _MODULE,
        f"tests/test_{module}.py": _TEST,
        "README.md": _README,
    }


_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
description = "A loss for kdcore"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["kdcore>=0.1"]

# The name is what `kdcore plugins` lists and `-p no:$name` blocks; the value is the module.
[project.entry-points.kdcore]
$name = "$module"

[tool.hatch.build.targets.wheel]
only-include = ["$module.py"]
"""

_MODULE = '''\
"""A loss for kdcore: `use = "$name"`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdcore import Loss, component, hookimpl


@component
class $cls(Loss):
    """The squared distance of the two distributions: 0 where they are equal, at most 2.

    temperature: both are taken at this temperature.
    """

    name = "$name"
    temperature: float = 1.0

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Logits [n, V] of both and labels [n] -> values [n]. The engine masks and averages."""
        assert teacher is not None  # as needs_teacher says, which is true by default
        q, p = ((logits / self.temperature).softmax(-1) for logits in (student, teacher))
        return (p - q).square().sum(-1)

    def formula(self) -> str:
        """As `kdcore plan` prints it."""
        return f"sum((p({self.temperature:g}) - q({self.temperature:g}))**2)"


@hookimpl
def kdcore_losses() -> Sequence[type[Loss]]:
    """What this plugin brings. There is such a hook for each kind of component."""
    return [$cls]
'''

_TEST = '''\
"""What the loss computes, and that it keeps kdcore's contract."""

import torch
from $module import $cls

from kdcore.testing import check_loss


def test_the_loss_is_the_squared_distance():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    found = $cls().per_token(student, teacher, torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([0.5]))  # (1/2, 1/2) and (0, 1)


def test_the_loss_keeps_the_contract():
    check_loss($cls())
'''

_README = """\
# $distribution

A plugin for kdcore with one loss, `$name`.

```
pip install -e .
kdcore plugins $name                                    # its options
kdcore run quickstart --set stage.kd.loss.kl.use=$name  # instead of the divergence `kl`
python -m pytest                                        # needs pytest
```

Every other kind of component (data, tokenizer, teacher, selection, patch, eval, logger) is made in
the same way: a class with options, returned by its hook.
"""
