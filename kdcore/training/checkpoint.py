"""Checkpoints: atomic saves, verification, loading.

A checkpoint holds the trained weights (never the teacher), the optimizer, the loss scaler, and for
every process its random state and the metric sums since the last record. Data order and schedules
are functions of the step, so they need no state. `manifest.json` is written last and holds a
checksum of every file. If processes leave one by one, the first writes the checkpoint, and the
others write their own state to `.step-N.process-RANK` next to it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcore.checksums import checksum
from kdcore.files import move_into_place
from kdcore.rng import RandomState
from kdcore.training.component_state import component_states, restore_components

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.training.component_state import Stateful

_log = logging.getLogger("kdcore")


_INSIDE = "/"  # separates a name from what it contains: bitsandbytes nests tables


def flat(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, each with its own memory, and all other values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    held = set[int]()
    for index, entries in state.items():
        for name, value in _leaves(entries, f"{index}."):
            if isinstance(value, Tensor):
                place = value.untyped_storage().data_ptr()
                tensors[name] = value.clone() if place in held else value
                held.add(place)
            else:
                values[name] = value
    return tensors, values


def nested(entries: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The inverse of `flat`."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in entries.items():
        index, _, name = key.partition(".")
        *tables, last = name.split(_INSIDE)
        table = state.setdefault(int(index), {})
        for inside in tables:
            table = table.setdefault(inside, {})
        table[last] = value
    return state


def _leaves(table: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}{_INSIDE}")
        else:
            yield before + name, value


_MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        keep: int,
        components: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.folder, self.accelerator, self.keep = folder, accelerator, keep
        self.components = components or {}
        self.model, self.optimizer = model, optimizer

    def has(self, step: int) -> bool:
        """Whether a checkpoint of this step exists."""
        return (self.folder / f"step-{step}").exists()

    def save(
        self, step: int, state: Mapping[str, Any], sums: Mapping[str, Tensor] | None = None
    ) -> Path:
        """Write the checkpoint of a step atomically; delete those beyond `keep`.

        `sums` are this process's own; `sums_of` returns them.
        """
        beside = self.folder / f".step-{step}.partial"
        try:
            return self._save(step, state, sums or {}, beside)
        except Exception:
            # A partial checkpoint would take up space on a disk that is already full.
            shutil.rmtree(beside, ignore_errors=True)
            raise

    def _save(
        self, step: int, state: Mapping[str, Any], sums: Mapping[str, Tensor], beside: Path
    ) -> Path:
        together = self.accelerator.wait_for_everyone
        target = self.folder / f"step-{step}"
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        together()
        self._write_own(beside, sums)
        together()
        if main:
            self._write(beside, {**state, "step": step})
            move_into_place(beside, target)
            for path in in_order(self.folder):
                if _step(path) > step:  # damaged, or the run would have resumed from it
                    shutil.rmtree(path)
            self._drop_old(step, _best(state))
        together()
        return target

    def save_alone(
        self, step: int, state: Mapping[str, Any], sums: Mapping[str, Tensor] | None = None
    ) -> None:
        """Like `save`, where processes leave independently and cannot wait for each other.

        All have the same weights. The first one writes the checkpoint; each of the others writes
        its own state next to it.
        """
        rank, target = self.accelerator.process_index, self.folder / f"step-{step}"
        beside, ours = target.with_name(f".step-{step}.{rank}.partial"), _beside(target, rank)
        if (target / f"random-{rank}.safetensors").exists():
            return
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            self._write_own(beside, sums or {})
            whole = not self.has(step)
            if whole:
                self._write(beside, {**state, "step": step})
            else:
                _seal(beside)
            move_into_place(beside, ours)
            if whole:
                _rename_first(ours, target)
        except Exception:
            shutil.rmtree(beside, ignore_errors=True)
            raise

    def _write_own(self, folder: Path, sums: Mapping[str, Tensor]) -> None:
        """The state that only this process has."""
        rank = self.accelerator.process_index
        save_file(RandomState.capture().tensors(), folder / f"random-{rank}.safetensors")
        _save(sums, folder / f"sums-{rank}.safetensors")

    def _write(self, folder: Path, state: dict[str, Any]) -> None:
        tensors, scalars = flat(self.optimizer.state_dict()["state"])
        _save(trained(self.model), folder / "student.safetensors")
        _save(tensors, folder / "optimizer.safetensors")
        kept, state["components"] = component_states(self.components)
        if kept:
            _save(kept, folder / "components.safetensors")
        scaler = self.accelerator.scaler
        state["optimizer"] = scalars
        state["scaler"] = scaler.state_dict() if scaler is not None else None
        state["processes"] = self.accelerator.num_processes
        (folder / "state.json").write_text(json.dumps(state, indent=1))
        _seal(folder)

    def newest(self) -> Path | None:
        """The newest complete checkpoint. Skips damaged ones with a message."""
        return newest(self.folder)

    def load(self, path: Path) -> dict[str, Any]:
        """Restore everything; returns the state that was given to `save`."""
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        load_weights(path, self.model)
        self._load_optimizer(path, state.pop("optimizer"))
        kept = path / "components.safetensors"
        restore_components(
            self.components,
            load_file(kept) if kept.exists() else {},
            state.pop("components", {}),
        )
        scaler_state = state.pop("scaler")
        if scaler_state and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler_state)
        state.pop("processes", None)
        # There is no file if it is unknown, or if more processes resume than wrote it.
        for random in _own_files(path, f"random-{self.accelerator.process_index}.safetensors"):
            RandomState.from_tensors(load_file(random)).restore()
        if self.accelerator.is_main_process:
            # As in a run that was never interrupted.
            self._drop_old(state["step"], _best(state))
        return state

    def _load_optimizer(self, path: Path, scalars: dict[str, Any]) -> None:
        whole = self.optimizer.state_dict()
        whole["state"] = nested(load_file(path / "optimizer.safetensors") | scalars)
        self.optimizer.load_state_dict(whole)

    def _drop_old(self, step: int, best: int | None) -> None:
        """Delete checkpoints beyond `keep` except the best one, and incomplete ones."""
        older = [path for path in in_order(self.folder) if _step(path) <= step][: -self.keep]
        gone = [path for path in older if _step(path) != best]
        for path in [*gone, *self.folder.glob(".step-*.partial")]:
            shutil.rmtree(path)
        for path in self.folder.glob(".step-*.process-*"):
            if not path.with_name(path.name[1:].partition(".")[0]).exists():
                shutil.rmtree(path)


def _best(state: Mapping[str, Any]) -> int | None:
    """The best step at the time of a checkpoint, where it is tracked."""
    best = state.get("best")
    return int(best["step"]) if best else None


def of_final(folder: Path) -> Path | None:
    """The checkpoint that a finished run's final weights come from: its best, or its newest."""
    last = newest(folder)
    best = None if last is None else _best(json.loads((last / "state.json").read_text()))
    return last if best is None else folder / f"step-{best}"


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder. Skips damaged ones with a message."""
    there = in_order(folder)
    for path in reversed(there):
        fault = damage(path)
        if fault is None:
            return path
        instead = "the run begins again" if path == there[0] else "the one before is used"
        _log.warning("checkpoint %s is damaged (%s); %s", path.name, fault, instead)
    return None


def sums_of(path: Path) -> list[dict[str, Tensor]]:
    """The `sums` of each process that wrote a checkpoint, by rank.

    Empty if one is missing, because that process ended abruptly.
    """
    found = sorted(_own_files(path, "sums-*.safetensors"), key=lambda each: int(each.stem[5:]))
    if found and len(found) < json.loads((path / "state.json").read_text()).get("processes", 0):
        return []
    return [load_file(each) for each in found]


def _beside(path: Path, rank: int) -> Path:
    """Where a process writes its own state if another one wrote the checkpoint."""
    return path.with_name(f".{path.name}.process-{rank}")


def _own_files(path: Path, pattern: str) -> list[Path]:
    """Files of single processes, in a checkpoint or next to it."""
    beside = path.parent.glob(f".{path.name}.process-*")
    places = [path, *(each for each in beside if damage(each) is None)]
    found = {file.name: file for place in reversed(places) for file in place.glob(pattern)}
    return list(found.values())


def _rename_first(ours: Path, target: Path) -> None:
    """Rename a folder, unless another process did so first."""
    try:
        ours.rename(target)
    except OSError:
        if not target.exists():
            raise


def _seal(folder: Path) -> None:
    """Write the checksums of all files, last."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps(sums, indent=1))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a checkpoint's weights into the model."""
    saved = load_file(path / "student.safetensors", device="cpu")
    with torch.no_grad():
        for name, tensor in trained(model).items():
            tensor.copy_(saved[name])


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: distinct trained parameters, and persistent buffers."""
    kept = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    parameters = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    return parameters | buffers


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def in_order(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name[5:])


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is complete."""
    try:
        sums = json.loads((path / _MANIFEST).read_text())
        if elsewhere := [name for name in sums if Path(name).name != name]:
            return f"its manifest names {elsewhere[0]!r}, which is not its own file"
        broken = [name for name, known in sums.items() if checksum(path / name) != known]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return str(error)
    return f"{', '.join(broken)} changed" if broken else None
