"""What `check` says of `[rollout]`."""

import pytest

from kdcore.errors import RecipeError
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

RECIPE = """
name = "rolled"

[student.config]
model_type = "llama"

[tokenizer]
use = "bpe"
vocab_size = 300

[data]
use = "stories"
block = 64

[teacher]
use = "self"

[[loss]]
use = "jsd"

[rollout]
use = "student"
max_new_tokens = 32

[train]
steps = 2
lr = 1e-3
"""


@pytest.fixture(scope="module")
def host():
    return PluginManager()


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "rolled.toml"
    path.write_text(RECIPE)
    return str(path)


def test_a_recipe_with_rollouts_has_every_option_written_out(recipe, host):
    read = read_recipe(recipe, host, sets=["rollout.share={start=0.2, end=1.0}"])
    stage = read.build()
    assert stage.rollout.name == "student" and stage.rollout.max_new_tokens == 32
    assert stage.by_place()["rollout"] is stage.rollout
    text = read.resolved(stage)
    for line in ("every = 1", "prompt_tokens = 32", 'write_batch = "auto"', "top_p = 1.0"):
        assert line in text.partition("[rollout]")[2]
    again = recipe.replace("rolled.toml", "again.toml")
    with open(again, "w") as file:
        file.write(text)
    assert read_recipe(again, host).build().writing.share_at(1.0) == 1.0


FAULTS = {
    "rollout.share=1.5": "share should be at most 1, not 1.5",
    "rollout.share=-0.1": "share should be at least 0, not -0.1",
    "rollout.share={start=0.0, end=2.0}": "share should be at most 1",
    "rollout.every=0": "every should be at least 1, not 0",
    "rollout.prompt_tokens=0": "prompt_tokens should be at least 1",
    "rollout.prompt_tokens=40": "prompt_tokens and max_new_tokens are 72 together, and block is 64",
    "rollout.write_batch=0": "write_batch should be at least 1",
    "rollout.max_new_tokens=64": "max_new_tokens = 64 leaves no room for a prompt in rows of 64",
    "rollout.temperature=-1.0": "temperature should be at least 0",
    "rollout.top_p=0.0": "top_p should be greater than 0",
    "rollout.shar=0.5": "has no option 'shar'; did you mean 'share'?",
    "rollout.use=studnt": "no rollout is named 'studnt'",
    "data.rows=chunk": 'rows = "chunk" cuts through documents',
    "data.eos=false": "the student would never end what it writes",
    "rollout={use='replay', of={use='student', max_new_tokens=70}, max_new_tokens=9}": (
        "max_new_tokens = 70 leaves no room"
    ),
    "teacher={use='cached', kind='sampled', teacher={use='hf', model='x'}}": (
        "was drawn for the data's rows"
    ),
    "loss=[{use='ce'}, {use='ce', where={source='data'}}]": (
        "the loss 'ce.2' asks for rows of data, and with share = 1 none is left"
    ),
    "loss.jsd.where={domain='math'}": "no document has the column 'domain'; there are: source",
    "rollout.every=0.5": "every should be a whole number, not 0.5",
    "rollout={use='teacher', max_new_tokens=9}": "the teacher 'self' only reads what others wrote",
}


@pytest.mark.parametrize(("change", "said"), FAULTS.items(), ids=FAULTS)
def test_faults(change, said, recipe, host):
    with pytest.raises(RecipeError) as raised:
        read_recipe(recipe, host, sets=[change])
    assert said in str(raised.value)


def test_tokens_cannot_be_counted(recipe, host):
    with pytest.raises(RecipeError, match="others are trained"):
        read_recipe(recipe, host, sets=["train={tokens=1000, lr=0.1}"])


@pytest.mark.parametrize("loss", ["opd", "minillm"])
def test_policy_gradients_need_tokens_that_were_drawn(loss, recipe, host):
    sets = [f"loss.jsd.use={loss}", "rollout.temperature=0.0"]
    with pytest.raises(RecipeError, match="over tokens that are drawn from the student only"):
        read_recipe(recipe, host, sets=sets)
    assert read_recipe(recipe, host, sets=sets[:1])


def test_a_writer_may_be_the_only_one_who_needs_the_teacher(recipe, host):
    sets = ["loss.jsd.use=ce", "rollout.use=teacher"]
    with pytest.raises(RecipeError, match="only reads"):  # but it is no longer nobody's teacher
        read_recipe(recipe, host, sets=sets)
    with pytest.raises(RecipeError, match="'teacher' needs a teacher"):
        read_recipe(recipe, host, sets=[*sets, "teacher.use=none"])
