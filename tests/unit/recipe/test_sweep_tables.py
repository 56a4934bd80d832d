"""`[sweep]`: which combinations its tables ask for, and what is wrong with them."""

import pytest
import tomli

from kdcore.errors import UsageError
from kdcore.recipe.node import Node, Source
from kdcore.recipe.sweep import label_of, read_sweep


def read(text, *eaches, executors=("slurm",)):
    table = tomli.loads(text)
    root = Node.of(table, Source("r.toml", text))
    return read_sweep(root.table.get("sweep"), eaches, executors)


def combinations(sweep):
    return [[each.text for each in one] for grid in sweep.grids for one in grid.combinations]


def test_lists_multiply_and_tables_add():
    found = read("[[sweep]]\nseed = [0, 1]\n'loss.kl.use' = ['kl', 'jsd']\n[[sweep]]\nseed = [7]")
    assert combinations(found) == [
        ["seed=0", 'loss.kl.use="kl"'],
        ["seed=0", 'loss.kl.use="jsd"'],
        ["seed=1", 'loss.kl.use="kl"'],
        ["seed=1", 'loss.kl.use="jsd"'],
        ["seed=7"],
    ]
    assert found.errors == [] and found.count == 5


def test_controls_are_counted_and_executors_are_no_keys():
    text = "[sweep]\ntrain.lr = [1e-3, 1e-4]\ncontrols = ['no-teacher']\n[sweep.slurm]\ntime = 'x'"
    found = read(text)
    assert found.count == 4 and found.options["slurm"].plain() == {"time": "x"}
    assert combinations(found) == [["train.lr=0.001"], ["train.lr=0.0001"]]


def test_the_command_line_takes_the_place_of_a_key_and_multiplies():
    found = read("[sweep]\nseed = [0, 1]\ntrain.lr = [1.0]", "seed=5", "train.clip=1,2")
    assert combinations(found) == [
        ["seed=5", "train.lr=1.0", "train.clip=1"],
        ["seed=5", "train.lr=1.0", "train.clip=2"],
    ]
    assert combinations(read("", "seed=0,1")) == [["seed=0"], ["seed=1"]]
    assert combinations(read("")) == [[]]


def test_a_key_may_be_typed_once():
    with pytest.raises(UsageError, match="--each seed is given twice; name all values in one"):
        read("", "seed=0", "train.lr=1,2", "seed=1")


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("[sweep]\nseed = 1", (2, "seed = 1"), "seed should be a list of values"),
        ("[sweep]\nseed = []", (2, "seed = []"), "seed should be a list of values"),
        ("[sweep]\nslurn.time = 'x'", (2, "slurn"), "slurn.time should be a list of values"),
        ("sweep = [1]", (1, "sweep"), "sweep should be a table of lists"),
        ("[sweep]\ncontrols = 'smoothed'", (2, "controls"), "controls should be a list"),
        ("[sweep]\ncontrols = ['no-teachers']", (2, "no-t"), "did you mean 'no-teacher'?"),
    ],
)
def test_what_is_wrong_is_shown_in_its_place(text, place, said):
    (fault,) = read(text).errors
    assert said in fault.message and fault.line == place[0] and place[1] in fault.source


def test_labels():
    assert label_of({"seed": 1, "loss.kl.use": "kl"}) == "seed=1 loss.kl.use=kl"
    assert label_of({"seed": 1}, "smoothed") == "seed=1 smoothed"
    assert label_of({}) == "as written"
