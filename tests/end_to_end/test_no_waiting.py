"""A step does not wait for the device: nothing in it is read on the host."""

import given
import pytest
import torch
from engine import Held, term
from kdcore_losses import ForwardKL
from kdcore_routed import Routed
from kdcore_selections import Hardest, Random
from torch.utils._python_dispatch import TorchDispatchMode
from training import ROWS, trainer

READS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten._unsafe_index)


class Watched(TorchDispatchMode):
    """Notes what a GPU would make the host wait for: values read, and shapes that hang on them."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        packet = function.overloadpacket
        by_mask = packet in INDEXING and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if packet in READS or by_mask:
            self.waits.append(str(packet))
        return function(*arguments, **(options or {}))


@pytest.fixture
def on_host(monkeypatch):
    """What is handed to Python whole, which no operator shows."""
    read = []
    for name in ("tolist", "numpy", "cpu"):
        plain = getattr(torch.Tensor, name)

        def noted(self, *arguments, _plain=plain, _name=name, **options):
            read.append(_name)
            return _plain(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, noted)
    return read


def waits_of(made, on_host):
    made.refusals.deferred = True  # as on a GPU
    made.step(1)  # what is made once
    del on_host[:]
    with Watched() as watched:
        made.step(2)
    return watched.waits, on_host


WHOLE = [given.row(6, seed=n, document=n) for n in range(8)]


@pytest.mark.parametrize("micro_batch", [2, 4])
@pytest.mark.parametrize("rows", [ROWS, WHOLE])
def test_a_step_reads_nothing(tmp_path, on_host, rows, micro_batch):
    assert waits_of(trainer(tmp_path, rows=rows, micro_batch=micro_batch), on_host) == ([], [])


@pytest.mark.parametrize("selection", [Hardest(keep=0.5), Random(keep=0.5)])
def test_a_selection_waits_for_how_many_tokens_it_kept(tmp_path, on_host, selection):
    """Of each micro-batch that is: head and losses run on these tokens only."""
    waits, read = waits_of(trainer(tmp_path, micro_batch=2, selection=selection), on_host)
    assert waits == ["aten.nonzero"] * 2
    assert read == []


def test_terms_of_some_documents_and_routes_read_nothing(tmp_path, on_host, monkeypatch):
    monkeypatch.setattr("kdcore.objective.objective._count_needs_sync", lambda tensor: True)
    monkeypatch.setattr("kdcore_routed._all_answer_everywhere", lambda positions: True)
    rows = given.rows_with_columns()
    some, others = {"domain": "math"}, {"domain": ["code", "prose"]}
    made = trainer(
        tmp_path,
        rows=rows,
        micro_batch=2,
        terms=[term(ForwardKL(), where=some), term(where=others)],
    )
    members = [Held(given.model(seed=seed)) for seed in (1, 2)]
    made.run.recipe.teacher = Routed(members=members, where=[some, None])
    waits, read = waits_of(made, on_host)
    assert waits == []
    assert set(read) <= {"numpy"}  # of what lies on the host


def test_waiting_is_seen(on_host):
    tensor = torch.arange(3)
    with Watched() as watched:
        tensor[tensor > 1]
        bool(tensor[0])
        tensor.tolist()
    assert len(watched.waits) >= 2
    assert on_host == ["tolist"]
