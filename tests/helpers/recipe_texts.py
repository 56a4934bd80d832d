"""Recipe texts that tests of the recipe language start from, and ways to read them."""

from pathlib import Path

import pytest
from fake_host import FakeHost

from kdcore.errors import RecipeError
from kdcore.recipe.recipe import read_recipe

SIMPLE = """\
[student]
model = "m"

[data]
use = "text"
path = "p"

[[loss]]
use = "ce"

[train]
lr = 1e-4
epochs = 1
"""

TAUGHT = """\
seed = 7
[student]
model = "m"
[data]
use = "text"
path = "p"
[teacher]
use = "hf"
model = "t"
[[loss]]
use = "ce"
weight = 0.5
[[loss]]
use = "kl"
temperature = 2.0
[train]
lr = 1e-4
epochs = 3
"""

STAGED = """\
[tokenizer]
use = "bpe"

[data]
use = "text"
path = "p"

[train]
epochs = 4
batch = 16

[stage.student.student.config]
model_type = "llama"
hidden_size = 64

[stage.student.teacher]
use = "ensemble"
members = [
    {use = "hf", model = "@one"},
    {use = "hf", model = "@two"},
]

[[stage.student.loss]]
use = "ce"

[[stage.student.loss]]
use = "kl"
temperature = 2.0

[stage.student.train]
lr = 1e-3
steps = 10

[stage.one.student.config]
model_type = "gpt2"
[[stage.one.loss]]
use = "ce"
[stage.one.train]
lr = 1e-4

[stage.two.student]
model = "@one"
[[stage.two.loss]]
use = "ce"
[stage.two.train]
lr = 2e-4
"""


def read(text, *, sets=(), logs=(), host=None, **files):
    """The recipe `r.toml` of this text in the current folder, with other files beside it."""
    for name, content in {"r": text, **files}.items():
        Path(f"{name}.toml").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    return read_recipe("r.toml", host or FakeHost(), sets=sets, logs=logs)


def table(text, *sets, stage="", **files):
    """The merged table of a stage."""
    recipe = read(text, sets=sets, **files)
    return next(each.table for each in recipe.stages if each.name == stage)


def errors_of(text, **options):
    """The faults of a recipe, as a user who stands beside it reads them."""
    with pytest.raises(RecipeError) as raised:
        read(text, **options)
    assert raised.value.exit_code == 2
    return raised.value.errors
