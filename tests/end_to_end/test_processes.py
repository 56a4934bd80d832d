"""Two processes give what one gives: every case runs in both, and `oracle` judges.

The processes are started once; they run all cases and hand back what they saw.
"""

import os
import socket
from dataclasses import dataclass
from types import SimpleNamespace

import cases
import engine
import given
import oracle
import pytest
import tiny
import torch
from adapted import adapted
from cases import SHARE
from engine import term
from given import VOCABULARY
from kdcore_losses import CrossEntropy, ForwardKL, HiddenCosine, HiddenMse
from kdcore_selections import Hardest, Random

from kdcore.api.schedule import Schedule

pytestmark = pytest.mark.slow

PROCESSES = 2
PLAIN = [term(ForwardKL(temperature=2.0)), term(CrossEntropy(), 0.5)]
ROWS = {
    "packed": given.packed_rows(),
    "single": given.single_rows(),
    "columns": given.rows_with_columns(),
    "seven": given.packed_rows()[:7],  # three and four: one more micro-batch here than there
    "one": given.packed_rows()[:1],  # a process has no rows
    "lopsided": [given.row(6, seed=1, prompt=6), *given.packed_rows()[:1]],  # and none to train
    "masked": [given.row(6, seed=1, prompt=6), given.row(1, seed=2)],
}


def hidden_terms():
    """One of them no longer counts in the second half of a run."""
    losses = [
        HiddenMse(layers=[[0, 1], [-1, -1]], projection="linear"),
        HiddenCosine(layers=[[1, 2]], projection="linear"),
    ]
    for seed, loss in enumerate(losses):  # as the engine does, for the oracle
        sizes = [16] * len(loss.layers)
        loss.set_sizes(sizes, sizes, seed)
        loss.learned().double()
    until = Schedule(start=1.0, end=0.0, until=0.5)
    return [term(losses[0], 0.7), term(CrossEntropy(), 0.3), term(losses[1], until)]


@dataclass(frozen=True)
class Case:
    rows: str = "packed"
    kind: str = "llama"
    micro_batch: int = 3
    selection: str | None = None
    scope: str = "step"
    tied: bool = False
    adapter: bool = False  # only a LoRA is trained
    loss: str | None = None
    average: str | None = None  # of an ensemble
    where: bool = False  # terms for some documents only
    hidden: bool = False  # terms that compare hidden states, and learn projections
    step: int = 1  # of 10

    def __str__(self):
        flags = ("adapter", "where", "hidden")
        named = vars(self) | {name: name if getattr(self, name) else "" for name in flags}
        return "-".join(str(each) for each in named.values() if each)

    @property
    def terms(self):
        if self.hidden:
            return hidden_terms()
        if self.where:
            return cases.WHERE_ON if self.selection else cases.WHERE
        if self.loss:
            return [term(cases.LOSSES[self.loss])]
        return cases.MIXED if self.selection else PLAIN

    def student(self):
        made = given.model(self.kind, double=True, tie_word_embeddings=self.tied)
        return adapted(made) if self.adapter else made

    def selection_and_scores(self):
        """For the engine, and for the oracle."""
        known = cases.selections()
        known["everything"] = (Hardest(keep=1.0), oracle.hardest)
        known["random"] = (Random(keep=SHARE), oracle.random(seed=0, step=self.step))
        return known.get(self.selection, (None, None))

    def teachers(self):
        """For the engine, and for the oracle."""
        if self.average:
            return cases.ensemble(self.average, [0.5, 1.5])
        return cases.teacher_of("gpt2")


CASES = [
    *(
        Case(kind=kind, micro_batch=micro_batch, selection=selection)
        for kind in tiny.KINDS
        for micro_batch in (1, 3, 8)
        for selection in (None, "rho")
    ),
    *(Case(selection=name) for name in (*cases.selections(), "everything")),
    *(Case(loss=name) for name in cases.LOSSES),
    *(Case(average=average) for average in ("logits", "probs")),
    *(Case(selection="random", step=step) for step in (4, 10)),
    *(Case(rows, selection=name) for rows in ROWS for name in (None, "rho")),
    *(Case(micro_batch=n, selection="rho", scope="micro_batch") for n in (1, 3, 4)),
    *(
        Case("columns", micro_batch=n, where=True, selection=name)
        for n in (1, 3, 8)
        for name in (None, "rho")
    ),
    *(
        Case("columns", micro_batch=n, where=True, selection="rho", scope="micro_batch")
        for n in (1, 3)
    ),
    Case(tied=True),
    Case(kind="gpt2", selection="rho", tied=True),
    *(Case(kind=kind, adapter=True) for kind in tiny.KINDS),
    *(Case(rows, hidden=True, adapter=True) for rows in ("packed", "single")),
    *(Case(rows, hidden=True, micro_batch=2) for rows in ("seven", "one", "lopsided", "masked")),
    *(Case(hidden=True, selection="rho", step=step) for step in (1, 4, 8)),
    *(Case(rows, selection="rho", adapter=True, tied=True) for rows in ("packed", "one")),
]
CASES = list(dict.fromkeys(CASES))


class Repeated(engine.InOrder):
    """The same rows at every step."""

    def step(self, step):
        return super().step(1)


# In each process


def run_case(case, accelerator):
    return engine.step(
        case.student(),
        ROWS[case.rows],
        case.terms,
        teacher=case.teachers()[0],
        selection=case.selection_and_scores()[0],
        micro_batch=case.micro_batch,
        scope=case.scope,
        accelerator=accelerator,
        order=Repeated,
        at=case.step,
        steps=10,
    )


def train(accelerator, folder, steps=4):
    """Steps that learn, a checkpoint, and what was logged."""
    from kdcore.training.setup import optimizer_of

    student = given.model(double=True)
    made = engine.trainer(
        student,
        ROWS["packed"],
        cases.MIXED,
        teacher=cases.teacher_of()[0],
        selection=cases.selections()["rho"][0],
        batch=5,
        micro_batch=2,
        steps=steps,
        folder=folder,
        order=engine.Order,
        accelerator=accelerator,
        optimizer=SimpleNamespace(param_groups=[]),
        save_every=2,
        log_every=2,
    )
    made.optimizer = optimizer_of(made.run.recipe.train, student)
    made.checkpoints.optimizer = made.optimizer
    made.train()
    weights = [p.detach() for p in student.parameters()]
    return weights, [event["record"] for event in made.host.of("kdcore_log")], made


def collectives(accelerator, rank):
    """The small things that processes agree on."""
    from kdcore.distributed import over
    from kdcore.training.signals import Signals

    gather = over(accelerator)
    signals = Signals()
    signals._got = 15 * rank
    return {
        "uneven": gather(torch.arange(3 * rank) + 10.0),
        "none": gather(torch.zeros(0)),
        "signal": signals.agreed(accelerator),
    }


def process(rank, port, folder):
    torch.set_num_threads(1)
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": PROCESSES,
        "LOCAL_WORLD_SIZE": PROCESSES,
    }
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == PROCESSES
    weights, records, made = train(accelerator, folder / "training")
    seen = {
        "cases": [run_case(case, accelerator) for case in CASES],
        "collectives": collectives(accelerator, rank),
        "weights": weights,
        "records": records,
        "newest": made.checkpoints.newest(),
        "loaded": made.checkpoints.load(made.checkpoints.newest()),
    }
    torch.save(seen, folder / f"{rank}.pt")
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


# In the test's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def seen(folder):
    """What each process saw."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, folder), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def groups_of(case):
    """The micro-batches of both processes, where each ranks by itself."""
    if case.scope == "step":
        return None
    rows, groups = len(ROWS[case.rows]), []
    for rank in range(PROCESSES):
        mine = list(range(rows * rank // PROCESSES, rows * (rank + 1) // PROCESSES))
        groups += [mine[at : at + case.micro_batch] for at in range(0, len(mine), case.micro_batch)]
    return groups


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_are_one(seen, case):
    expected = oracle.step(
        case.student(),
        ROWS[case.rows],
        case.terms,
        vocabulary=VOCABULARY,
        teacher=case.teachers()[1],
        scores=case.selection_and_scores()[1],
        share=1.0 if case.selection == "everything" else SHARE,
        done=(case.step - 1) / 10,
        groups=groups_of(case),
        shown=cases.model("gpt2", seed=1) if case.hidden else None,
    )
    results = [each["cases"][CASES.index(case)] for each in seen]
    one, other = (result.kept for result in results)
    assert not one & other
    assert not case.selection or one | other == expected.kept
    for result in results:
        cases.assert_equal(result, expected)


def test_training_is_that_of_one_process(seen, tmp_path):
    weights, records, _ = train(engine.Alone(), tmp_path)
    for each in seen:
        for found, alone in zip(each["weights"], weights, strict=True):
            torch.testing.assert_close(found, alone, rtol=1e-7, atol=1e-9)
        for found, alone in zip(each["records"], records, strict=True):
            assert (found.step, found.tokens, found.kept) == (alone.step, alone.tokens, alone.kept)
            assert found.terms == pytest.approx(alone.terms, rel=1e-6)
            assert found.selection == pytest.approx(alone.selection, rel=1e-6)


def test_processes_hold_the_same_weights(seen):
    one, other = (each["weights"] for each in seen)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_checkpoint_has_every_process_s_random_state(seen, folder):
    newest = folder / "training" / "checkpoints" / "step-4"
    assert [each["newest"] for each in seen] == [newest, newest]
    assert [each["loaded"]["step"] for each in seen] == [4, 4]
    names = {path.name for path in newest.iterdir()}
    assert {"random-0.safetensors", "random-1.safetensors"} <= names


def test_values_are_gathered_in_the_order_of_the_processes(seen):
    for rank, each in enumerate(seen):
        everyone, first = each["collectives"]["uneven"]
        assert (everyone.tolist(), first) == ([10.0, 11.0, 12.0], 0)
        everyone, first = each["collectives"]["none"]
        assert (len(everyone), first) == (0, 0)
        assert each["collectives"]["signal"] == 15
        assert rank in (0, 1)
