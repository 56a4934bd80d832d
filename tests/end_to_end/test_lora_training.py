"""The engine trains an adapter: gradients by the oracle, and nothing made for frozen weights."""

from types import SimpleNamespace

import cases
import engine
import given
import oracle
import pytest
import tiny
import torch
from adapted import adapted
from cases import SHARE
from engine import Held, term
from given import VOCABULARY
from kdcore_losses import CrossEntropy, ForwardKL
from safetensors.torch import load_file

from kdcore.models.head import LogitsGradient
from kdcore.objective import chunked_loss
from kdcore.training.setup import enable_checkpointing, optimizer_of

pytestmark = pytest.mark.slow

pytest.importorskip("peft")


def student(kind="llama", *, double=True, tied=False, **options):
    return adapted(given.model(kind, double=double, tie_word_embeddings=tied), **options)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("selected", [None, "rho"])
@pytest.mark.parametrize("micro_batch", [3, 8])
def test_loss_and_gradients_are_the_oracles(kind, tied, selected, micro_batch):
    model, (teacher, known) = student(kind, tied=tied), cases.teacher_of(kind)
    selection, scores = cases.selections(kind)[selected] if selected else (None, None)
    terms = cases.MIXED if selected else cases.MIXED[:2]
    expected = oracle.step(
        model, cases.ROWS["packed"], terms, vocabulary=VOCABULARY, teacher=known, scores=scores,
        share=SHARE,
    )  # fmt: skip
    found = engine.step(
        model,
        cases.ROWS["packed"],
        terms,
        teacher=teacher,
        selection=selection,
        micro_batch=micro_batch,
    )
    assert expected.gradients and all("lora_" in name for name in expected.gradients)
    assert all(bool(x.abs().max() > 0) for x in expected.gradients.values())
    cases.assert_equal(found, expected, selected=bool(selected))


def test_an_adapted_head_by_its_full_logits():
    model = student(targets=["q_proj", "lm_head"])
    expected = oracle.step(model, cases.ROWS["packed"], [term()], vocabulary=VOCABULARY)
    assert any("lm_head.lora_B" in name for name in expected.gradients)
    found = engine.step(model, cases.ROWS["packed"], [term()], micro_batch=3)
    cases.assert_equal(found, expected)


@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_head_has_no_gradient_and_no_place_for_one(tied, monkeypatch):
    made = []
    zeros = chunked_loss._zeros
    monkeypatch.setattr(chunked_loss, "_zeros", lambda like: made.append(like.shape) or zeros(like))
    monkeypatch.setattr(LogitsGradient, "add_to_weight", lambda *_: pytest.fail("it was computed"))
    model = student(double=False, tied=tied)
    rows = given.packed_rows()[:1]
    found = engine.step(model, rows, [term()])
    assert made == [(len(rows[0]["input_ids"]), 16)]  # the states'
    assert model.get_output_embeddings().weight.grad is None
    assert {name for name, x in found.gradients.items() if x is not None} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_checkpointed_activations_change_nothing(kind):
    def step(model):
        terms, teacher = [term(ForwardKL())], Held(given.model(seed=1))
        return engine.step(model, given.packed_rows(), terms, teacher=teacher, micro_batch=3)

    plain, model = step(student(kind, double=False)), student(kind, double=False)
    enable_checkpointing(model)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    again = step(model)
    assert again.terms == plain.terms
    for name, gradient in plain.gradients.items():
        assert again.gradients[name] is gradient is None or torch.equal(
            again.gradients[name], gradient
        )


def test_half_base_and_whole_masters():
    """The adapter's gradients are float32 beside a base in bfloat16."""
    model = adapted(tiny.model(dtype=torch.bfloat16, vocabulary=VOCABULARY))
    found = engine.step(model, given.packed_rows(), [term()], micro_batch=3)
    for name, gradient in found.gradients.items():
        assert gradient is None if "lora_" not in name else gradient.dtype == torch.float32


def trainer(folder, steps=6):
    model = student(double=False, dropout=0.2)
    made = engine.trainer(
        model,
        given.packed_rows(),
        [term(ForwardKL(temperature=2.0)), term(CrossEntropy(), 0.5)],
        teacher=Held(given.model(seed=1)),
        batch=4,
        micro_batch=3,
        steps=steps,
        folder=folder,
        order=engine.Order,
        optimizer=SimpleNamespace(param_groups=[]),
        lr=0.01,
        save_every=3,
        save_keep=9,
        weight_decay=0.1,
    )
    made.optimizer = optimizer_of(made.run.recipe.train, model)
    made.checkpoints.optimizer = made.optimizer
    torch.manual_seed(5)
    return made


def weights(made):
    return {name: p.detach().clone() for name, p in made.run.student.named_parameters()}


def test_training_changes_the_adapter_and_nothing_else(tmp_path):
    made = trainer(tmp_path)
    before = weights(made)
    made.train()
    for name, after in weights(made).items():
        assert torch.equal(after, before[name]) == ("lora_" not in name), name


def test_a_checkpoint_is_the_adapter_and_resumes_to_the_last_bit(tmp_path):
    whole = trainer(tmp_path)
    whole.train()
    saved = load_file(tmp_path / "checkpoints" / "step-3" / "student.safetensors")
    assert saved.keys() == {name for name in weights(whole) if "lora_" in name}
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoints" / "step-3").iterdir())
    adapter = sum(4 * tensor.numel() for tensor in saved.values())
    assert size < 3 * adapter + 30_000  # weights and two moments; random states and headers

    again = trainer(tmp_path / "elsewhere")
    again.run.step = again.checkpoints.load(tmp_path / "checkpoints" / "step-3")["step"]
    again.train()
    for name, after in weights(again).items():
        assert torch.equal(after, weights(whole)[name]), name
