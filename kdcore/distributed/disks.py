"""Processes on several nodes that may not share a disk: who sees whose files, and copies of them.

The run folder belongs to the first process. Other disks get copies of what is read there: the
tokenizer, the final weights of a stage that another one refers to, a checkpoint while it is loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from kdcore.checksums import checksum
from kdcore.distributed import heard, process_store, start_beating
from kdcore.files import move_into_place, sync

if TYPE_CHECKING:
    from accelerate import Accelerator

_PART = 1 << 26  # bytes sent at a time


@dataclass(frozen=True)
class Disk:
    """Which processes see the same files under a path."""

    leader: int = 0  # the first process that sees what this one sees
    leaders: Sequence[int] = (0,)  # of all disks, in order

    @property
    def is_shared(self) -> bool:
        """Whether all processes see the same files."""
        return len(self.leaders) == 1

    @property
    def is_first(self) -> bool:
        """Whether this process sees the files of the first one."""
        return self.leader == 0


SHARED = Disk()


def disk_of(accelerator: Accelerator, folder: Path) -> Disk:
    """Find out who shares a folder, by a file that each process writes there for a moment.

    Called by all processes together.
    """
    if accelerator.num_processes == 1:
        return SHARED
    store, rank = process_store(), accelerator.process_index
    turn = f"kdcore/disk/{store.add(f'kdcore/disks/{rank}', 1)}"
    start_beating(accelerator)
    mine = folder / f".kdcore-{uuid4().hex}"
    with suppress(OSError):  # then this process alone is on its disk, and reports it when it writes
        folder.mkdir(parents=True, exist_ok=True)
        mine.touch()
    try:
        store.set(f"{turn}/name/{rank}", mine.name)
        leader = next(n for n in range(rank + 1) if n == rank or _sees(store, turn, n, folder))
        store.set(f"{turn}/leader/{rank}", str(leader))
        ranks = range(accelerator.num_processes)
        leaders = {int(heard(store, f"{turn}/leader/{each}", each)) for each in ranks}
    finally:
        with suppress(OSError):
            mine.unlink(missing_ok=True)
    return Disk(leader, tuple(sorted(leaders)))


def _sees(store: Any, turn: str, rank: int, folder: Path) -> bool:
    return (folder / heard(store, f"{turn}/name/{rank}", rank)).exists()


@contextmanager
def leaders_first(accelerator: Accelerator, disk: Disk) -> Iterator[None]:
    """Run the block in the first process of each disk, then in all others.

    Leaders work at the same time and leave together. Without a time limit: collectives time out,
    with NCCL after ten minutes, and tokenising a large corpus takes longer. The others continue
    even if the block fails in a leader, and raise ProcessLost if it is gone.
    """
    if accelerator.num_processes == 1:
        yield
        return
    store, rank = process_store(), accelerator.process_index
    turn = f"kdcore/led/{store.add(f'kdcore/leads/{rank}', 1)}"
    leads = disk.leader == rank
    if leads:
        try:
            yield
        finally:
            store.set(f"{turn}/{rank}", b"1")
    for leader in disk.leaders:
        heard(store, f"{turn}/{leader}", leader)
    if not leads:
        yield


def main_first(accelerator: Accelerator) -> AbstractContextManager[None]:
    """Run the block in the main process first, then in all others."""
    return leaders_first(accelerator, SHARED)


def of_first(accelerator: Accelerator, value: Any) -> Any:
    """The first process's value, on all."""
    from accelerate.utils import broadcast_object_list

    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def of_all(accelerator: Accelerator, value: Any) -> list[Any]:
    """The values of all processes, in order, on all."""
    from accelerate.utils import gather_object

    found: list[Any] = gather_object([value])
    return found


def bring(accelerator: Accelerator, disk: Disk, path: Path) -> None:
    """Copy a file or folder of the first process to the same path on all other disks.

    Nothing is sent if they have it already. If the first process has none, others lose theirs.
    Called by all processes together.
    """
    if disk.is_shared:
        return
    leads = disk.leader == accelerator.process_index and not disk.is_first
    listed = of_first(accelerator, _listed(path) if accelerator.is_main_process else None)
    same = not leads or listed == _listed(path)
    if all(of_all(accelerator, same)):
        return
    copy = path.with_name(f".{path.name}.brought")
    if leads:
        _remove(copy)
    for name, size, _ in listed:
        source = path / name if name else path
        target = (copy / name if name else copy) if leads else None
        _send(accelerator, source, target, size)
    if leads:
        _remove(path)
        if listed:
            _move(copy, path)
    accelerator.wait_for_everyone()


def _listed(path: Path) -> list[tuple[str, int, str]]:
    """Names in a folder ("" for a file), bytes and checksums; empty if there is nothing."""
    if path.is_file():
        return [("", path.stat().st_size, checksum(path))]
    files = sorted(each for each in path.rglob("*") if each.is_file())
    return [(str(each.relative_to(path)), each.stat().st_size, checksum(each)) for each in files]


def _move(copy: Path, path: Path) -> None:
    if copy.is_dir():
        move_into_place(copy, path)
    else:
        sync(copy)
        copy.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _send(accelerator: Accelerator, source: Path, target: Path | None, size: int) -> None:
    """One file, from the first process to those that have a target."""
    from accelerate.utils import broadcast

    main = accelerator.is_main_process
    reading = source.open("rb") if main else None
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"")
    for start in range(0, size, _PART):
        length = min(_PART, size - start)
        part = torch.empty(length, dtype=torch.uint8)
        if reading is not None:
            part = torch.frombuffer(bytearray(reading.read(length)), dtype=torch.uint8)
        part = broadcast(part.to(accelerator.device)).cpu()
        if target is not None:
            with target.open("ab") as file:
                file.write(part.numpy().tobytes())
    if reading is not None:
        reading.close()
