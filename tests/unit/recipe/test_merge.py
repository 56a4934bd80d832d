"""How recipes are laid over one another."""

import pytest
from recipe_texts import SIMPLE, STAGED, TAUGHT, read, table


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_extends_another_beside_it(here):
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
