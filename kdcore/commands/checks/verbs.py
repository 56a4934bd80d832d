"""`kdcore plugins NAME --verify` for a verb: it loads, has help, and imports public names only."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint

from kdcore.cli.main import loaded_verb
from kdcore.commands.checks.verdicts import Verdict, of_imports
from kdcore.errors import PluginError


def verdicts_of_verb(verb: EntryPoint) -> Iterator[Verdict]:
    """Its imports, and the verb itself with the help of each argument."""
    part = f"verb {verb.name}"
    try:
        command = loaded_verb(verb)
    except PluginError as error:
        yield Verdict(part, "broken", str(error))
        return
    yield of_imports(verb.module)
    without = [each.name for each in command.params if not getattr(each, "help", None)]
    if not command.help:
        yield Verdict(part, "broken", "it has no docstring, so kdcore --help cannot describe it")
    else:
        yield Verdict(part, "kept", f"no help for {', '.join(without)}" if without else "")
