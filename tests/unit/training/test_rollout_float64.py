"""In float64 neither micro-batches nor processes change what twenty steps write and learn."""

import os
import socket

import pytest
import torch
from engine import Alone, term
from kdcore_losses import JensenShannon
from kdcore_losses.on_policy import OnPolicyDistillation
from test_rollout_rows import DIALOGUES, trainer
from training import weights as weights_of

pytestmark = pytest.mark.slow

STEPS, PROCESSES = 20, 2


def learned(folder, micro_batch, accelerator=None):
    """The texts of all steps and the weights behind the last one."""
    made = trainer(
        folder,
        DIALOGUES,
        terms=[term(JensenShannon(beta=0.5)), term(OnPolicyDistillation(), weight=0.1)],
        written={"share": 0.75, "write_batch": 3},
        micro_batch=micro_batch,
        steps=STEPS,
        batch=8,
        double=True,
        accelerator=accelerator or Alone(),
    )
    texts = []
    for step in range(1, STEPS + 1):
        made.step(step)
        made.run.step = step
        texts.append([tuple(one.ids) for one in made.rows.written(step)])
        made.rows.forget(step)
    return texts, weights_of(made)


def test_twenty_steps_are_the_same_for_every_micro_batch_and_for_two_processes(tmp_path):
    texts, weights = learned(tmp_path, 8)
    assert len({one for step in texts for one in step}) > 3 * STEPS
    assert not torch.equal(weights[0], weights_of(trainer(tmp_path, double=True))[0]), "it learns"
    others = {1: learned(tmp_path, 1), 3: learned(tmp_path, 3), "two": by_two(tmp_path)}
    for name, (text, found) in others.items():
        assert text == texts, name
        for one, other in zip(found, weights, strict=True):
            assert one.dtype == torch.float64
            assert (one - other).abs().max() < 1e-10, name


def by_two(folder):
    """The same by two processes, with micro-batches of 2."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, folder), nprocs=PROCESSES)
    return torch.load(folder / "two.pt", weights_only=False)


def _process(rank, port, folder):
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES}
    names |= {"LOCAL_WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == PROCESSES
    found = learned(folder, 2, accelerator)
    if rank == 0:
        torch.save(found, folder / "two.pt")
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()
