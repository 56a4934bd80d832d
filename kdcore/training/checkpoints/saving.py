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
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcore.distributed.disks import SHARED, Disk, bring, of_all, of_first
from kdcore.files import move_into_place
from kdcore.rng import RandomState
from kdcore.sharding.layout import Layout
from kdcore.sharding.storage import (
    divided,
    has_parts,
    read_into,
    read_like,
    undivided,
    write_parts,
)
from kdcore.sharding.wrapping import local
from kdcore.training.checkpoints.component_state import component_states, restore_components
from kdcore.training.checkpoints.folders import (
    best_of,
    in_order,
    newest,
    own_files,
    seal,
    step_of,
    sums_in,
    sums_of,
    whole_sums,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.training.checkpoints.component_state import Stateful

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
                place = local(value).untyped_storage().data_ptr()
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


def _is_moment(name: str) -> bool:
    return name.partition(".")[0].isdigit()


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
        disk: Disk = SHARED,
        layout: Layout | None = None,
        components: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.folder, self.accelerator, self.keep = folder, accelerator, keep
        self.components = components or {}
        self.layout = layout or Layout(accelerator)
        self.model, self.optimizer = model, optimizer
        self.disk = disk
        self._last: int | None = None

    def has(self, step: int) -> bool:
        """Whether this is the checkpoint that was last saved or loaded, alike on every process."""
        return step == self._last

    def save(
        self, step: int, state: Mapping[str, Any], sums: Mapping[str, Tensor] | None = None
    ) -> Path:
        """Write the checkpoint of a step atomically; delete those beyond `keep`.

        `sums` are this process's own; `sums_of` returns them.
        """
        partial = self.folder / f".step-{step}.partial"
        try:
            return self._save(step, state, sums or {}, partial)
        except Exception:
            # A partial checkpoint would take up space on a disk that is already full.
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _save(
        self, step: int, state: Mapping[str, Any], sums: Mapping[str, Tensor], partial: Path
    ) -> Path:
        together = self.accelerator.wait_for_everyone
        target = self.folder / f"step-{step}"
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        together()
        self._write_all(partial, sums)
        if self.layout.sharded:
            write_parts(partial, self._divided())
        together()
        if main:
            self._write(partial, {**state, "step": step})
            move_into_place(partial, target)
            for path in in_order(self.folder):
                if step_of(path) > step:  # damaged, or the run would have resumed from it
                    shutil.rmtree(path)
            self._drop_old(step, best_of(state))
        together()
        self._last = step
        return target

    def _write_all(self, folder: Path, sums: Mapping[str, Tensor]) -> None:
        """The state that each process has of its own, to the first process's disk."""
        if self.disk.is_shared:
            self._write_own(folder, sums)
            return
        with TemporaryDirectory(prefix="kdcore-own-") as place:
            self._write_own(Path(place), sums)
            own = {path.name: path.read_bytes() for path in Path(place).iterdir()}
        for files in of_all(self.accelerator, own):
            for name, content in files.items() if self.accelerator.is_main_process else ():
                (folder / name).write_bytes(content)

    def save_alone(
        self, step: int, state: Mapping[str, Any], sums: Mapping[str, Tensor] | None = None
    ) -> None:
        """Like `save`, where processes leave independently and cannot wait for each other.

        All have the same weights. The first one writes the checkpoint; each of the others writes
        its own state next to it, on its own disk. Of a sharded student nothing is written.
        """
        if self.layout.sharded:
            return  # no process has all of the student: the run resumes from the last checkpoint
        rank, target = self.accelerator.process_index, self.folder / f"step-{step}"
        partial, ours = (
            target.with_name(f".step-{step}.{rank}.partial"),
            _own_state_folder(target, rank),
        )
        if (target / f"random-{rank}.safetensors").exists():
            return
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self._write_own(partial, sums or {})
            whole = self.disk.is_first and not target.exists()
            if whole:
                self._write(partial, {**state, "step": step})
            else:
                seal(partial)
            move_into_place(partial, ours)
            if whole:
                _rename_first(ours, target)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _write_own(self, folder: Path, sums: Mapping[str, Tensor]) -> None:
        """The state that only this process has."""
        rank = self.accelerator.process_index
        save_file(RandomState.capture().tensors(), folder / f"random-{rank}.safetensors")
        _save(sums, folder / f"sums-{rank}.safetensors")

    def _divided(self) -> dict[str, Tensor]:
        """All sharded tensors of a checkpoint. Names of different kinds cannot be equal."""
        self.layout.rest()
        moments, _ = flat(self.optimizer.state_dict()["state"])
        kept, _ = component_states(self.components)
        return divided({**trained(self.model), **moments, **kept})

    def _write(self, folder: Path, state: dict[str, Any]) -> None:
        tensors, scalars = flat(self.optimizer.state_dict()["state"])
        _save(undivided(trained(self.model)), folder / "student.safetensors")
        _save(undivided(tensors), folder / "optimizer.safetensors")
        kept, state["components"] = component_states(self.components)
        if kept := undivided(kept):
            _save(kept, folder / "components.safetensors")
        scaler = self.accelerator.scaler
        state["optimizer"] = scalars
        state["scaler"] = scaler.state_dict() if scaler is not None else None
        state["processes"] = self.accelerator.num_processes
        (folder / "state.json").write_text(json.dumps(state, indent=1))
        seal(folder)

    def newest(self) -> Path | None:
        """The newest complete checkpoint of the first process. Skips damaged ones with a message.

        `here` brings it to this process's disk.
        """
        if self.disk.is_shared:
            return newest(self.folder)
        mine = newest(self.folder) if self.accelerator.is_main_process else None
        found: Path | None = of_first(self.accelerator, mine)
        return found

    @contextmanager
    def here(self, path: Path) -> Iterator[Path]:
        """A checkpoint on this process's disk, as long as the block runs."""
        bring(self.accelerator, self.disk, path)
        yield path
        if self.disk.is_shared:
            return
        self.accelerator.wait_for_everyone()
        if not self.disk.is_first and self.disk.leader == self.accelerator.process_index:
            shutil.rmtree(path)
            for own in path.parent.glob(".step-*.process-*"):
                if not own.name.startswith(f".{path.name}."):
                    shutil.rmtree(own)

    def sums(self, path: Path) -> list[dict[str, Tensor]]:
        """See `sums_of`; from all disks."""
        if self.disk.is_shared:
            return sums_of(path)
        found: dict[str, dict[str, Tensor]] = {}
        for sums in of_all(self.accelerator, sums_in(path)):
            found |= sums
        return whole_sums(path, found)

    def load(self, path: Path) -> dict[str, Any]:
        """Restore everything; returns the state that was given to `save`."""
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        self.layout.rest()
        load_weights(path, self.model)
        self._load_optimizer(path, state.pop("optimizer"))
        self._load_components(path, state.pop("components", {}))
        scaler_state = state.pop("scaler")
        if scaler_state and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler_state)
        state.pop("processes", None)
        # There is no file if it is unknown, or if more processes resume than wrote it.
        for random in own_files(path, f"random-{self.accelerator.process_index}.safetensors"):
            RandomState.from_tensors(load_file(random)).restore()
        self._last = state["step"]
        if self.accelerator.is_main_process:
            # As in a run that was never interrupted.
            self._drop_old(state["step"], best_of(state))
        return state

    def _load_optimizer(self, path: Path, scalars: dict[str, Any]) -> None:
        state = self.optimizer.state_dict()
        tensors = load_file(path / "optimizer.safetensors")
        if self.layout.sharded or has_parts(path):
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            tensors = read_like(
                path, _is_moment, lambda name: parameters[int(name.partition(".")[0])]
            )
        state["state"] = nested(tensors | scalars)
        self.optimizer.load_state_dict(state)

    def _load_components(self, path: Path, values: Mapping[str, Mapping[str, Any]]) -> None:
        kept = path / "components.safetensors"
        tensors = load_file(kept) if kept.exists() else {}
        if self.layout.sharded or has_parts(path):
            current, _ = component_states(self.components)
            prefixes = tuple(f"{name}/" for name in values)
            tensors = read_like(path, lambda name: name.startswith(prefixes), current.get)
        restore_components(self.components, tensors, values)

    def _drop_old(self, step: int, best: int | None) -> None:
        """Delete checkpoints beyond `keep` except the best one, and incomplete ones."""
        older = [path for path in in_order(self.folder) if step_of(path) <= step][: -self.keep]
        gone = [path for path in older if step_of(path) != best]
        for path in [*gone, *self.folder.glob(".step-*.partial")]:
            shutil.rmtree(path)
        for path in self.folder.glob(".step-*.process-*"):
            if not path.with_name(path.name[1:].partition(".")[0]).exists():
                shutil.rmtree(path)


def _own_state_folder(path: Path, rank: int) -> Path:
    """Where a process writes its own state if another one wrote the checkpoint."""
    return path.with_name(f".{path.name}.process-{rank}")


def _rename_first(ours: Path, target: Path) -> None:
    """Rename a folder, unless another process did so first."""
    try:
        ours.rename(target)
    except OSError:
        if not target.exists():
            raise


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a checkpoint's weights into the model."""
    tensors = trained(model)
    if divided(tensors) or has_parts(path):
        read_into(path, tensors)
        return
    saved = load_file(path / "student.safetensors", device="cpu")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: distinct trained parameters, and persistent buffers."""
    kept = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    parameters = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    return parameters | buffers


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
