"""Teachers made of the student, and the state that a run keeps of its components."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from kdcore_own import Average, Itself, kdcore_teachers
from kdcore_selections import GlobalSelection
from safetensors.torch import load_file

import kdcore
from kdcore import LanguageModel, PluginError
from kdcore.testing.fakes import make_batch, make_tokens, tiny_llama
from kdcore.training.checkpoints.component_state import component_states, restore_components

RECIPE = {
    "name": "own",
    "student": {
        "config": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
    },
    "tokenizer": {"use": "bpe", "vocab_size": 300},
    "data": {"use": "stories", "block": 32, "stories": 40},
    "teacher": {"use": "ema", "decay": 0.5},
    "loss": [{"use": "ce"}, {"use": "kl"}],
    "selection": {"use": "gls", "keep": 0.5, "score": {"use": "ce"}, "memory": 200},
    "train": {"lr": 1e-2, "steps": 8, "batch": 2, "log_every": 1, "save_every": 2},
}


def run_of(model):
    return SimpleNamespace(
        student=model, language_model=LanguageModel(model), autocast=torch.no_grad
    )


def test_self_is_the_student_before_its_first_step():
    model = tiny_llama(50)
    teacher, batch = Itself(), make_batch([[1, 2, 3, 4]], 50)
    run = run_of(model)
    teacher.load(run)
    before = run.language_model.logits(run.language_model.states(batch)[batch.valid])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    torch.testing.assert_close(teacher.read(batch)(batch.valid), before)
    assert teacher.state_dict() == {}


def test_ema_is_the_average_of_the_weights_so_far():
    model, teacher = tiny_llama(50), Average(decay=0.75)
    run = run_of(model)
    teacher.load(run)
    first = model.lm_head.weight.detach().clone()
    teacher.kdcore_step_start(run, 1)
    expected = first.clone()
    for step in (2, 3):
        with torch.no_grad():
            model.lm_head.weight.add_(step)
        teacher.kdcore_step_start(run, step)
        expected = 0.75 * expected + 0.25 * model.lm_head.weight.detach()
    torch.testing.assert_close(teacher.state_dict()["lm_head.weight"], expected)


def test_ema_takes_in_every_so_many_steps():
    model, teacher = tiny_llama(50), Average(decay=0.5, every=2)
    run = run_of(model)
    teacher.load(run)
    before = teacher.state_dict()["lm_head.weight"].clone()
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    teacher.kdcore_step_start(run, 2)
    assert teacher.state_dict()["lm_head.weight"].equal(before)
    teacher.kdcore_step_start(run, 3)
    assert not teacher.state_dict()["lm_head.weight"].equal(before)


def test_frozen_weights_are_shared_and_not_averaged():
    model, teacher = tiny_llama(50), Average()
    model.model.requires_grad_(False)
    teacher.load(run_of(model))
    assert list(teacher.state_dict()) == ["lm_head.weight"]
    held = teacher._model.model.model.embed_tokens.weight
    assert held is model.model.embed_tokens.weight


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return kdcore.run(RECIPE, out=tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 5, 7])
def test_a_run_with_state_resumes_to_the_last_bit(whole, tmp_path, at):
    def stop(record):
        if record.step == at:
            raise RuntimeError("stopped here")

    with pytest.raises(PluginError, match="stopped here"):
        kdcore.run(RECIPE, out=tmp_path, on_record=stop)
    again = kdcore.run(RECIPE, out=tmp_path)
    name = "final/model.safetensors"
    found, expected = (load_file(each.folder / name) for each in (again, whole))
    assert all(found[key].equal(expected[key]) for key in expected)
    timings = ("time", "tokens_per_second", "elapsed", "cpu_seconds")
    for ours, theirs in zip(again.metrics, whole.metrics, strict=True):
        for key in ours.keys() - set(timings):
            assert ours[key] == theirs[key], key


@pytest.mark.slow
def test_without_its_state_the_average_would_be_another_teacher(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Average, "load_state_dict", lambda self, state: None)

    def stop(record):
        if record.step == 5:
            raise RuntimeError("stopped here")

    with pytest.raises(PluginError):
        kdcore.run(RECIPE, out=tmp_path, on_record=stop)
    again = kdcore.run(RECIPE, out=tmp_path)
    assert again.scores["nll"] != whole.scores["nll"]


# Kept and restored


class Kept:
    name = "kept"
    component_kind = "selection"

    def __init__(self, state=None):
        self.state = state or {}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_state_round_trips_through_safetensors_and_json():
    state = {"a": torch.arange(3), "b": 1, "c": 0.5, "d": "text", "e": b"\x00\xff"}
    tensors, values = component_states({"selection": Kept(state), "data": Kept()})
    assert set(tensors) == {"selection/a"} and set(values) == {"selection"}
    fresh = Kept()
    restore_components({"selection": fresh}, tensors, json.loads(json.dumps(values)))
    assert fresh.state.pop("a").equal(state.pop("a"))
    assert fresh.state == state


def test_state_without_an_owner_is_named(caplog):
    tensors, values = component_states({"selection": Kept({"b": 1})})
    with caplog.at_level(logging.WARNING, "kdcore"):
        restore_components({}, tensors, values)
    assert "state of selection 'kept', which the recipe does not have" in caplog.text


def test_what_cannot_be_kept_is_named():
    with pytest.raises(
        PluginError, match=r"selection 'kept' .*has a list as 'b' in its state_dict"
    ):
        component_states({"selection": Kept({"b": [1]})})


# The threshold that remembers


def test_gls_keeps_by_the_scores_of_the_steps_before():
    from kdcore_losses import CrossEntropy

    selection = GlobalSelection(keep=0.5, score=CrossEntropy(), memory=20)
    batches = [make_batch([[n, n + 1, n + 2, n + 3, n + 4, n + 5]], 50) for n in (1, 9, 17, 25)]
    past = torch.empty(0)
    with torch.no_grad():
        for step, batch in enumerate(batches, 1):
            tokens = make_tokens(batch, step=step)
            scores = tokens.student_nll()
            kept = selection.keep(tokens)
            assert kept.equal(selection.keep(make_tokens(batch, step=step)))  # a step tried again
            if len(past) < 2:
                assert kept.sum() == 3
            else:
                threshold = past.sort(descending=True).values[-(-len(past) // 2) - 1]
                assert kept.equal(scores >= threshold)
            past = torch.cat([past, scores])[-20:]


def test_hook_kdcore_teachers():
    assert [each.name for each in kdcore_teachers()] == ["self", "ema"]
