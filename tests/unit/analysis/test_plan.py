"""Plans of recipes: everything that can be known is, the rest is named, no weights are loaded."""

from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import tiny
import transformers

from kdcore.analysis.plan import _bos, plans_of
from kdcore.cli.main import plugin_manager
from kdcore.data.given import as_rows
from kdcore.errors import RunError
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.open import OpenRequest, open_stage
from kdcore.training.run_state import RunState

pytestmark = pytest.mark.slow

STAGES = """
[tokenizer]
use = "bpe"
vocab_size = 300
[data]
use = "stories"
stories = 12
validation = 3
block = 64
[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
[[loss]]
use = "ce"
[train]
epochs = 2
batch = 4
lr = 1e-3

[stage.teacher.student.config]
num_hidden_layers = 3
[stage.kd.teacher]
use = "hf"
model = "@teacher"
[[stage.kd.loss]]
use = "kl"
[stage.again.student]
model = "@teacher"
"""

DATA = '''
import huggingface_hub.constants
from kdcore import Data, RunError, component, hookimpl

@component
class Far(Data):
    """Text that lies on the hub."""

    name = "far"
    here: bool = False

    def texts(self, split):
        if huggingface_hub.constants.is_offline_mode() and not self.here:
            raise RunError("the texts are not here")
        yield from ["A few words. " * 9] * 9

@hookimpl
def kdcore_data():
    return [Far]
'''


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)


def recipe_of(tmp_path, text, *sets, files=()):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return read_recipe(str(path), plugin_manager([str(file) for file in files]), sets=sets)


def plans(tmp_path, text, *sets, files=()):
    found = plans_of(recipe_of(tmp_path, text, *sets, files=files))
    return {plan.stage.name: plan for plan in found}


def parameters(plan):
    return sum(part.total for part in plan.estimate.parts)


def test_stages_stand_in_for_models_of_other_stages(tmp_path):
    found = plans(tmp_path, STAGES)
    assert list(found) == ["teacher", "kd", "again"]
    assert not any(plan.unknown for plan in found.values())
    taught = dict(found["kd"].estimate.memory)
    assert taught[f"teacher: hf, {parameters(found['teacher']):,} parameters"] == (
        4 * parameters(found["teacher"])
    )
    assert parameters(found["again"]) == parameters(found["teacher"]) > parameters(found["kd"])


def test_what_losses_learn_is_counted(tmp_path):
    loss = "{use = 'hidden-mse', layers = [[0, 1], [-1, -1]], projection = 'linear'}"
    wide = "stage.teacher.student.config.hidden_size=24"
    plain = plans(tmp_path, STAGES, wide)["kd"].estimate
    plan = plans(tmp_path, STAGES, wide, f"stage.kd.loss=[{loss}, {{use = 'kl'}}]")["kd"]
    assert not plan.unknown
    (learned,) = [part for part in plan.estimate.parts if part.name == "learned by hidden-mse"]
    assert (learned.count, learned.each, learned.trained) == (2, 24 * 16, 2 * 24 * 16)
    memory = dict(plan.estimate.memory)
    assert memory["what losses learn, with its optimizer"] == 4 * 4 * learned.total
    assert plan.estimate.checkpoint == plain.checkpoint + 3 * 4 * learned.total
    assert plan.estimate.final == plain.final
    assert "MSE(W(h(0)), g(1))" in plan.objective
    alone = plans(tmp_path, STAGES, wide, f"stage.kd.loss=[{loss}]")["kd"]
    assert not alone.unknown


def test_components_are_as_they_were_typed(tmp_path):
    said = plans(tmp_path, STAGES)["kd"].components
    assert said["teacher"] == "hf(model='@teacher')"
    assert said["data"] == "stories(block=64, stories=12, validation=3)"
    assert said["student"].startswith("llama(hidden_size=16, ") and said["student"].endswith(
        "fresh"
    )


def test_options_have_the_names_that_recipes_give_them(tmp_path):
    plan = plans(tmp_path, STAGES, "selection={use = 'random', keep = 0.5}")["teacher"]
    assert plan.components["selection"] == "random(keep=0.5)"
    assert "mean_kept" in plan.objective


def test_rows_are_those_of_a_run(tmp_path):
    plan = plans(tmp_path, STAGES)["teacher"]
    stage = recipe_of(tmp_path, STAGES).build("teacher")
    run = open_stage(OpenRequest(stage, tmp_path), upto="tokenizer")
    rows = run.laid("train")
    assert (plan.documents, plan.rows, plan.tokens) == (12, len(rows), rows.lengths.sum())
    assert plan.ids == len(run.tokenizer)
    assert plan.steps == len(rows) * 2 // 4


def test_a_hub_out_of_reach_leaves_the_rest(tmp_path):
    sets = ("stage.teacher.student={model = 'nobody/nothing'}", "stage.kd.train.steps=7")
    found = plans(tmp_path, STAGES, *sets)
    [why] = found["teacher"].unknown
    assert why.startswith("the student: cannot load 'nobody/nothing': ")
    assert found["teacher"].rows
    [why] = found["kd"].unknown
    assert why.startswith("the memory of the teacher 'hf': cannot load '@teacher'")
    assert found["kd"].steps == 7 and parameters(found["kd"])
    [why] = found["again"].unknown
    assert why.startswith("the student: cannot load '@teacher'")
    assert found["again"].estimate is None


def test_a_config_that_a_run_would_refuse_is_reported(tmp_path):
    config = ("model_type='qwen3_moe'", "output_router_logits=true", "router_aux_loss_coef=0.5")
    sets = [f"stage.teacher.student.config.{each}" for each in config]
    [why] = plans(tmp_path, STAGES, *sets)["teacher"].unknown
    assert why.startswith("the student: the student's config adds a loss of its routers")


def test_without_a_tokenizer_steps_are_still_reported(tmp_path):
    sets = ("tokenizer={use = 'hf', model = 'nobody/nothing'}", "train.steps=7")
    plan = plans(tmp_path, STAGES, *sets)["teacher"]
    assert (plan.ids, plan.rows, plan.estimate, plan.steps) == (None, None, None, 7)
    assert plan.objective == "loss = 1 * mean_all(CE(q(1), y))"
    what, causes = zip(*(why.split(": ", 1) for why in plan.unknown), strict=True)
    assert what == ("the tokenizer", "rows and tokens", "the student")
    assert len({*causes}) == 1 and causes[0].startswith("cannot load 'nobody/nothing'")


def test_data_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "far_data.py").write_text(DATA)
    tiny.save(tmp_path / "model")
    text = STAGES[: STAGES.index("[stage.")]
    sets = (f"student={{model = '{tmp_path}/model'}}", "tokenizer=")
    for here in ("false", "true"):
        data = f"data={{use = 'far', here = {here}}}"
        [plan] = plans(tmp_path, text, data, *sets, files=[tmp_path / "far_data.py"]).values()
        assert not huggingface_hub.constants.is_offline_mode()
        assert parameters(plan)
        if here == "true":
            assert (plan.unknown, plan.documents) == ([], 9)
        else:
            assert plan.unknown == ["rows and tokens: the texts are not here"]
            assert (plan.rows, plan.steps) == (None, None)


def test_too_few_rows_for_a_step_are_reported(tmp_path):
    plan = plans(tmp_path, STAGES, "train.batch=1000")["teacher"]
    [why] = plan.unknown
    assert why.startswith("steps: ") and plan.steps is None


def test_what_the_data_does_wrong_is_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr(RunState, "laid", lambda run, split: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plans(tmp_path, STAGES)
    monkeypatch.setattr(
        RunState, "laid", lambda run, split: (_ for _ in ()).throw(RunError("no text"))
    )
    assert plans(tmp_path, STAGES)["teacher"].unknown == ["rows and tokens: no text"]


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    plans(tmp_path, STAGES)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("first, said", [(1, "<s>"), (5, "")])
def test_a_beginning_is_named_only_where_rows_have_one(first, said):
    """A chat template may begin otherwise than the tokenizer does."""
    tokenizer = tiny.llama_tokenizer()
    data = SimpleNamespace(name="given", bos=True)
    first = tokenizer.bos_token_id if said else first
    rows = as_rows([{"input_ids": [first, 6, 7]}, {"input_ids": [first, 8]}], "train")
    assert _bos(data, tokenizer, rows) == (tokenizer.bos_token if said else "")
