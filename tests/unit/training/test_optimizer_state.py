"""What optimizers keep goes through names and tensors and comes back as it was."""

import json

import torch
from safetensors.torch import load_file, save_file

from kdcore.training.checkpoints.saving import flat, nested

MAP = torch.linspace(-1, 1, 256)
STATE = {
    0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)},
    1: {"step": 3, "table": {"state1": torch.zeros(4, dtype=torch.uint8), "map": MAP}},
    12: {"step": 3, "table": {"state1": torch.ones(4, dtype=torch.uint8), "map": MAP}},
}
"""As torch and bitsandbytes have it: the latter in tables of its own, with a map that all share."""


def test_what_is_kept_comes_back(tmp_path):
    tensors, values = flat(STATE)
    save_file(tensors, tmp_path / "state.safetensors")  # refuses memory that tensors share
    again = nested(load_file(tmp_path / "state.safetensors") | json.loads(json.dumps(values)))
    assert again.keys() == STATE.keys()
    assert torch.equal(again[0]["exp_avg"], STATE[0]["exp_avg"])
    for index in (1, 12):
        assert again[index]["step"] == 3
        table, exact = again[index]["table"], STATE[index]["table"]
        assert table.keys() == exact.keys()
        assert all(torch.equal(table[name], exact[name]) for name in exact)


def test_tensors_are_not_copied_without_need():
    tensors, _ = flat(STATE)
    assert tensors["0.exp_avg"] is STATE[0]["exp_avg"]
    assert tensors["1.table/map"] is MAP
    assert tensors["12.table/map"] is not MAP
