"""How recipes are laid over one another."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_texts import SIMPLE, STAGED, TAUGHT, read, table

from kdcore.recipe.merge import in_order, references, replace_references, without_none
from kdcore.recipe.node import Node, Source


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_extends_another_next_to_it(here):
    (here / "sub").mkdir()
    (here / "sub" / "base.toml").write_text('extends = "deeper.toml"\nseed = 3\nname = "base"\n')
    (here / "sub" / "deeper.toml").write_text(TAUGHT)
    recipe = read('extends = "sub/base.toml"\n[train]\nlr = 1e-3\n')
    assert recipe.name == "r"
    merged = recipe.stages[0].table
    assert (merged["seed"], merged["train"]) == (3, {"lr": 1e-3, "epochs": 3})


def test_tables_merge_and_lists_replace():
    merged = table(
        'extends = "b.toml"\n[data]\nconfig = "c"\n[[loss]]\nuse = "kl"\n[train]\nbatch = 2\n',
        b=TAUGHT,
    )
    assert merged["data"] == {"use": "text", "path": "p", "config": "c"}
    assert merged["loss"] == [{"use": "kl"}]
    assert merged["train"] == {"lr": 1e-4, "epochs": 3, "batch": 2}


def test_a_table_with_another_use_replaces():
    assert table('extends = "b.toml"\n[data]\nuse = "fresh"\n', b=TAUGHT)["data"] == {
        "use": "fresh"
    }


def test_a_config_of_another_model_type_replaces():
    base = STAGED + '[stage.three]\n[[stage.three.loss]]\nuse = "ce"\n[stage.three.train]\nlr = 1\n'
    base += '[student.config]\nmodel_type = "llama"\nlayers = 2\n'
    more = '[stage.three.student.config]\nmodel_type = "gpt2"\nn_layer = 3\n'
    assert table(base + more, stage="three")["student"] == {
        "config": {"model_type": "gpt2", "n_layer": 3}
    }


def test_of_several_inherited_ones_the_nearest_wins():
    assert table('extends = "b.toml"\n[train]\nsteps = 5\n', b=TAUGHT)["train"] == {
        "lr": 1e-4,
        "steps": 5,
    }
    assert table(STAGED, stage="student")["train"] == {"lr": 1e-3, "batch": 16, "steps": 10}
    fresh = '[student.config]\nmodel_type = "gpt2"\n[tokenizer]\nuse = "bpe"\n'
    merged = table('extends = "b.toml"\n' + fresh, b=TAUGHT)
    assert merged["student"] == {"config": {"model_type": "gpt2"}}


def test_use_none_removes():
    removing = '[teacher]\nuse = "none"\n[[eval]]\nuse = "none"\n[[loss]]\nuse = "ce"\n'
    merged = table('extends = "b.toml"\n' + removing, b=TAUGHT + '[[eval]]\nuse = "samples"\n')
    assert "teacher" not in merged
    assert merged["eval"] == []
    assert "tokenizer" not in table(STAGED + '[stage.two.tokenizer]\nuse = "none"\n', stage="two")
    recipe = read(
        'extends = "b.toml"\n[stage.two]\nuse = "none"\n', b=STAGED.replace("@two", "@one")
    )
    assert [stage.name for stage in recipe.stages] == ["one", "student"]


def test_requirements_of_all_files_count():
    recipe = read(
        'extends = "b.toml"\nrequires = ["pydantic"]\n', b='requires = ["kdcore"]\n' + SIMPLE
    )
    assert recipe.requires == ["pydantic", "kdcore"]


def written(name, needs):
    return Node.of({"student": {"model": [f"@{each}" for each in needs]}}, Source("r.toml"))


@given(st.data())
def test_stages_come_behind_what_they_need_and_else_in_file_order(data):
    names = [f"s{n}" for n in range(data.draw(st.integers(1, 8)))]
    ranks = data.draw(st.permutations(names))
    needs = {
        name: data.draw(st.lists(st.sampled_from(ranks[:at]), unique=True)) if at else []
        for at, name in enumerate(ranks)
    }
    found = in_order({name: written(name, needs[name]) for name in names}, [])
    order = [name for name, _ in found]
    for at in range(len(order)):  # the first in the file of those that are ready
        ready = [name for name in names if {*needs[name]} <= {*order[:at]}]
        assert order[at] == next(name for name in ready if name not in order[:at])
    assert {name: sorted(each) for name, each in found} == {
        name: sorted(each) for name, each in needs.items()
    }


@pytest.mark.slow
def test_a_long_chain_of_stages_is_put_in_order_at_once():
    """A million comparisons of each with each would take minutes."""
    names = [f"s{n}" for n in range(20_000)]
    chain = {n: written(n, [m]) for n, m in pairwise(names)}
    chain[names[-1]] = written(names[-1], [])
    assert [name for name, _ in in_order(chain, [])] == names[::-1]


def test_an_array_of_numbers_is_one_node_until_an_item_is_asked_for():
    """A recipe with an array of 6 MB took 14 seconds and 1.6 GB."""
    written = Node.of({"few": [0.9, 0.95], "deep": [[1], ["@a"]]}, Source("r"))
    assert written.table["few"].value == (0.9, 0.95)
    assert [name for name, _ in references(written)] == ["a"]
    assert replace_references(without_none(written), str.upper).plain() == {
        "few": [0.9, 0.95],
        "deep": [[1], ["A"]],
    }
    copied = written.copy()
    copied.table["few"].items[1] = Node.of(0.99, Source("--set"))
    assert copied.table["few"].plain() == [0.9, 0.99]
    assert written.table["few"].plain() == [0.9, 0.95]
    assert written.reach(("few", 1))[0].path == ("few", 1)
