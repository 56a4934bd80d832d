"""The public API as lines: names, members and parameters with their defaults, no annotations.

`python tests/helpers/public_api.py > tests/fixtures/api-VERSION.txt` keeps it at a release.
"""

import inspect
from collections.abc import Iterator

import kdcore
import kdcore.testing


def lines() -> Iterator[str]:
    """One for each name, method, field and hook."""
    for module in (kdcore, kdcore.testing):
        for name in sorted(module.__all__):
            yield from _of(name, getattr(module, name))
    hooks = _hookspecs()
    for name in sorted(vars(hooks)):
        if name.startswith("kdcore_"):
            yield f"{name}({', '.join(inspect.signature(getattr(hooks, name)).parameters)})"


def _hookspecs():
    try:
        from kdcore.api import hookspecs
    except ImportError:  # where 0.1 has them
        from kdcore import hookspecs
    return hookspecs


def _of(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value) and not issubclass(value, BaseException):
        yield name
        found = {*vars(value), *getattr(value, "__annotations__", {})}
        for member in sorted(each for each in found if not each.startswith("_")):
            method = inspect.getattr_static(value, member, None)
            yield f"{name}.{member}{_parameters(method)}"
    else:
        yield f"{name}{_parameters(value)}"


def _parameters(value: object) -> str:
    value = getattr(value, "__func__", value)
    if not inspect.isfunction(value):
        return ""
    found = inspect.signature(value).parameters.values()
    return f"({', '.join(str(each.replace(annotation=inspect.Parameter.empty)) for each in found)})"


if __name__ == "__main__":
    print("\n".join(lines()))
