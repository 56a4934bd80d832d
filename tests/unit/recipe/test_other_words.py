"""Other trainers' words for the keys of `[train]`: each is told with ours."""

import pytest
from recipe_texts import SIMPLE, read

from kdcore import RecipeError
from kdcore.api.train_options import TrainOptions
from kdcore.recipe.other_words import WORDS, ours


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_ours_are_keys_of_train_and_theirs_are_none():
    known = set(TrainOptions.__dataclass_fields__)
    assert {key for key, _ in WORDS.values()} <= known
    assert not known & WORDS.keys()


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_others_is_reported_with_ours(word):
    with pytest.raises(RecipeError) as raised:
        read(f"{SIMPLE}\n[train]\n{word} = 1\nlr = 1e-3\nsteps = 1\n" if "[train]" not in SIMPLE
             else SIMPLE.replace("[train]\n", f"[train]\n{word} = 1\n"))  # fmt: skip
    assert ours(word)[0] in str(raised.value) and ours(word)[1].split()[0] in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 4


@pytest.mark.parametrize(
    "was, typed, ours", [("steps", "num_train_epochs", "epochs"), ("lr", "learing_rate", "lr")]
)
def test_what_was_meant_is_not_missed_as_well(was, typed, ours):
    lines = [line for line in SIMPLE.splitlines() if not line.startswith(("steps", "epochs", was))]
    duration = [] if was == "steps" else ["steps = 1"]
    at = lines.index("[train]") + 1
    text = "\n".join([*lines[:at], f"{typed} = 1", *duration, *lines[at:]]) + "\n"
    with pytest.raises(RecipeError) as raised:
        read(text)
    assert "needs" not in str(raised.value) and f"here it is {ours!r}" in str(raised.value)
