"""What the command line changes in a recipe: `--set K=V` and `--log NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tomli

from kdcore.addresses import NoSuchPlaceError, find, key_of, kind_at, parts_of, spelled
from kdcore.build import option_types
from kdcore.contract import suggestion
from kdcore.errors import Fault
from kdcore.locate import KeyPath
from kdcore.merging import NONE, merge
from kdcore.options import RIVALS
from kdcore.tables import ENGINE_KEYS, in_stage, stages_of
from kdcore.written import Source, Written

if TYPE_CHECKING:
    from kdcore.plugins import Host


def add_to_list(root: Written, key: str, name: str, flag: str) -> None:
    """`--log NAME`, `--use NAME`: one with its defaults, in every stage that does not name it."""
    source = Source(f"{flag} {name}")
    root.table.setdefault(key, Written.of([], source))
    for table in (root, *stages_of(root).values()):
        found = table.table.get(key)
        if found is not None and all(item.use != name for item in found.items):
            found.items.append(Written.of({"use": name}, source))


@dataclass
class Overrides:
    """Applies `--set` to a recipe; faults and notes are gathered."""

    root: Written
    host: Host
    faults: list[Fault]
    notes: list[str]

    def apply(self, sets: Sequence[str]) -> None:
        """In the order typed, but the top level first: stages inherit from it."""
        for text in sorted(sets, key=lambda text: text.lstrip().startswith("stage.")):
            self._set(text)

    def _set(self, text: str) -> None:
        """`K=V`: V is TOML, else a text; `K=` removes."""
        source = Source(f"--set {text}")
        address, equals, value = text.partition("=")
        try:
            if not equals:
                raise NoSuchPlaceError(f"{text!r} is not KEY=VALUE", "KEY= removes a key")
            parts = parts_of(address.strip())
            if parts[0] in ("extends", "requires"):
                raise NoSuchPlaceError(f"{parts[0]} is for files only")
            self._own(parts)
            parent, path = find(self.root, parts[:-1], source)
            key = key_of(parent, parts[-1], path)
            if value:
                self._put(parent, (*path, key), Written.of(_parsed(value), source))
            else:
                self._remove(parent, (*path, key), source)
        except NoSuchPlaceError as error:
            self.faults.append(source.fault((), error.message, error.hint))

    def _own(self, parts: Sequence[str]) -> None:
        """Before a stage's table is changed, it takes over what it inherits from the top level."""
        stages = stages_of(self.root) if parts[0] == "stage" and len(parts) >= 4 else {}
        if stages and parts[1] in stages and parts[2] in self.root.table:
            stage, inherited = stages[parts[1]], self.root.table[parts[2]]
            own = stage.table.get(parts[2])
            merged = merge(inherited, own, RIVALS.get(parts[2], ())) if own else inherited
            stage.table[parts[2]] = merged.copy()
            stage.table[parts[2]].whole = True

    def _put(self, parent: Written, path: KeyPath, value: Written) -> None:
        key = path[-1]
        if isinstance(key, int):
            parent.items[key] = value
            return
        if path[:-1] == ("stage",) and key not in parent.table:
            raise NoSuchPlaceError(f"there is no {spelled(path)}{suggestion(key, parent.table)}")
        if key == "use":
            self._drop_options(parent, path[:-1], value)
        for rival in _rivals(path):
            parent.table.pop(rival, None)
        value.whole = True
        parent.table[key] = value
        self._note_stages(path)

    def _remove(self, parent: Written, path: KeyPath, source: Source) -> None:
        key = path[-1]
        if isinstance(key, int):
            del parent.items[key]
            return
        stage, inner = in_stage(path)
        is_inherited = bool(stage) and len(inner) == 1 and key in self.root.table
        if key not in parent.table and not is_inherited:
            near = suggestion(key, parent.table)
            raise NoSuchPlaceError(f"the recipe gives no {spelled(path)}, so none is removed{near}")
        parent.table.pop(key, None)
        if is_inherited:
            parent.table[key] = Written.of({"use": NONE}, source)

    def _drop_options(self, table: Written, path: KeyPath, use: Written) -> None:
        """Another component keeps the options that it also has."""
        kind, new = kind_at(self.root, path, self.host), use.plain()
        if kind is None or not isinstance(new, str) or table.use in (None, new):
            return
        provided = self.host.provided(kind)
        if new not in provided:
            return
        known = {"use", *option_types(provided[new].cls), *ENGINE_KEYS.get(kind, ())}
        dropped = [key for key in table.table if key not in known]
        table.before = str(table.use)
        for key in dropped:
            del table.table[key]
        if dropped:
            options = ", ".join(dropped)
            self.notes.append(f"{spelled(path)} is now {new!r}, which has no {options}: dropped")

    def _note_stages(self, path: KeyPath) -> None:
        """A stage that says the same thing itself does not hear of the top level."""
        said = [path, *((*path[:-1], rival) for rival in _rivals(path))]
        others = [
            f"stage.{name}.{spelled(other)}"
            for name, stage in stages_of(self.root).items()
            for other in said
            if stage.reach(other)[1] == other
        ]
        if others and path[0] != "stage":
            says = f"{spelled(path)} is set, but where stages say otherwise"
            self.notes.append(f"{says}: {', '.join(others)}")


def _rivals(path: KeyPath) -> list[str]:
    inner = in_stage(path)[1]
    rivals = RIVALS.get(str(inner[0]), ()) if len(inner) == 2 else ()
    return [rival for rival in rivals if rival != inner[1]] if path[-1] in rivals else []


def _parsed(text: str) -> object:
    try:
        parsed = tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError as error:
        if text.lstrip().startswith(("[", "{")):
            raise NoSuchPlaceError(
                f"{text} is not TOML: {error.msg[0].lower()}{error.msg[1:]}",
                'write a list as ["a", "b"] and a table as {use = "kl"}, in quotes for the shell',
            ) from None
        return text
    except (ValueError, RecursionError):  # too many digits, or nested too deeply
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text
