"""Each recipe for a CPU runs a few steps, and gives the numbers that it gave: see `golden`."""

import golden
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.recipes())
def test_the_first_steps_give_the_numbers_that_they_gave(name, tmp_path):
    folders = golden.run(name, tmp_path)
    known = golden.golden()[name]
    assert folders.keys() == known.keys()
    for stage, folder in folders.items():
        assert (folder / "final").is_dir()
        found = golden.numbers(folder)
        # One token that is drawn otherwise, by the last bit on another processor, changes the text.
        writes = "rollout]" in (folder / "resolved.toml").read_text()
        rel = 0.1 if writes else 1e-4
        assert found.keys() == known[stage].keys()
        for key, values in known[stage].items():
            assert found[key] == pytest.approx(values, rel=rel, abs=1e-5), f"{stage} {key}"


def test_there_are_numbers_for_every_recipe_for_a_cpu():
    assert golden.golden().keys() == set(golden.recipes())
