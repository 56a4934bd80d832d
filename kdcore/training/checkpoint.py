"""Checkpoints: saved atomically, verified, loaded.

A checkpoint holds what is trained (never the teacher), the optimizer, the loss scaler, and of every
process its random state and the sums of steps that no record has told yet. The data's order and the
schedules are functions of the step, so the step says it all. `manifest.json` is written last and
holds a checksum of every file. Where processes leave one by one, the first writes the checkpoint,
and the others lay what only they know into `.step-N.process-RANK` beside it.
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


_INSIDE = "/"  # between a name and what lies inside: bitsandbytes has tables in its tables


def flat(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, each with memory of its own, and everything else."""
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
    """The state whose tensors and values these are."""
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
        """Whether there is a checkpoint of this step."""
        return (self.folder / f"step-{step}").exists()

    def save(
        self, step: int, state: Mapping[str, Any], sums: Mapping[str, Tensor] | None = None
    ) -> Path:
        """Write the checkpoint of a step whole, or not at all; drop those beyond `keep`.

        `sums` are this process's own, and come back from `sums_of`.
        """
        beside = self.folder / f".step-{step}.partial"
        try:
            return self._save(step, state, sums or {}, beside)
        except Exception:
            # On a full disk, half a checkpoint would be in the way of everything else.
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
                if _step(path) > step:  # damaged, or the run would have gone on from it
                    shutil.rmtree(path)
            self._drop_old(step, _best(state))
        together()
        return target

    def save_alone(
        self, step: int, state: Mapping[str, Any], sums: Mapping[str, Tensor] | None = None
    ) -> None:
        """The same where each process leaves by itself, and can wait for none of the others.

        All have the same weights. The first one writes the checkpoint, and each of the others lays
        beside it what only it knows.
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
        """What only this process knows."""
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
        """The newest checkpoint that is whole; a damaged one is passed over with a message."""
        return newest(self.folder)

    def load(self, path: Path) -> dict[str, Any]:
        """Put everything back; returns what was given to `save`."""
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
        # None where it is not known, or where it is continued on more processes than wrote it.
        for random in _own_files(path, f"random-{self.accelerator.process_index}.safetensors"):
            RandomState.from_tensors(load_file(random)).restore()
        if self.accelerator.is_main_process:
            # As a run does that was not ended just before it.
            self._drop_old(state["step"], _best(state))
        return state

    def _load_optimizer(self, path: Path, scalars: dict[str, Any]) -> None:
        whole = self.optimizer.state_dict()
        whole["state"] = nested(load_file(path / "optimizer.safetensors") | scalars)
        self.optimizer.load_state_dict(whole)

    def _drop_old(self, step: int, best: int | None) -> None:
        """Those beyond `keep` but for the best one, and what was left half."""
        older = [path for path in in_order(self.folder) if _step(path) <= step][: -self.keep]
        gone = [path for path in older if _step(path) != best]
        for path in [*gone, *self.folder.glob(".step-*.partial")]:
            shutil.rmtree(path)
        for path in self.folder.glob(".step-*.process-*"):
            if not path.with_name(path.name[1:].partition(".")[0]).exists():
                shutil.rmtree(path)


def _best(state: Mapping[str, Any]) -> int | None:
    """The step that had scored best when a checkpoint was written, where that is kept."""
    best = state.get("best")
    return int(best["step"]) if best else None


def of_final(folder: Path) -> Path | None:
    """The checkpoint that the final weights of a finished run are of: its best, or its newest."""
    last = newest(folder)
    best = None if last is None else _best(json.loads((last / "state.json").read_text()))
    return last if best is None else folder / f"step-{best}"


def newest(folder: Path) -> Path | None:
    """The newest checkpoint there that is whole; a damaged one is passed over with a message."""
    there = in_order(folder)
    for path in reversed(there):
        fault = damage(path)
        if fault is None:
            return path
        instead = "the run begins again" if path == there[0] else "the one before is used"
        _log.warning("checkpoint %s is damaged (%s); %s", path.name, fault, instead)
    return None


def sums_of(path: Path) -> list[dict[str, Tensor]]:
    """What each process that wrote a checkpoint gave as its `sums`, by their numbers.

    Nothing where that of some process is not known: it ended without a word.
    """
    found = sorted(_own_files(path, "sums-*.safetensors"), key=lambda each: int(each.stem[5:]))
    if found and len(found) < json.loads((path / "state.json").read_text()).get("processes", 0):
        return []
    return [load_file(each) for each in found]


def _beside(path: Path, rank: int) -> Path:
    """Where a process lays what only it knows, if another one wrote the checkpoint alone."""
    return path.with_name(f".{path.name}.process-{rank}")


def _own_files(path: Path, pattern: str) -> list[Path]:
    """Files of single processes, in a checkpoint or beside it."""
    beside = path.parent.glob(f".{path.name}.process-*")
    places = [path, *(each for each in beside if damage(each) is None)]
    found = {file.name: file for place in reversed(places) for file in place.glob(pattern)}
    return list(found.values())


def _rename_first(ours: Path, target: Path) -> None:
    """Rename a folder, unless another process was first."""
    try:
        ours.rename(target)
    except OSError:
        if not target.exists():
            raise


def _seal(folder: Path) -> None:
    """Write the checksum of every file, last."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps(sums, indent=1))


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into the model."""
    saved = load_file(path / "student.safetensors", device="cpu")
    with torch.no_grad():
        for name, tensor in trained(model).items():
            tensor.copy_(saved[name])


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trained parameters, each once, and the buffers that models save."""
    kept = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    parameters = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    return parameters | buffers


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def in_order(folder: Path) -> list[Path]:
    """The checkpoints there, by step."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name[5:])


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is whole."""
    try:
        sums = json.loads((path / _MANIFEST).read_text())
        if elsewhere := [name for name in sums if Path(name).name != name]:
            return f"its manifest names {elsewhere[0]!r}, which is no file of its own"
        broken = [name for name, known in sums.items() if checksum(path / name) != known]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return str(error)
    return f"{', '.join(broken)} changed" if broken else None
