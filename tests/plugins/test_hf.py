from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from kdcore_hf import HfTeacher, HfTokenizer

from kdcore import LanguageModel, RunError, read, read_nll

RUN = SimpleNamespace(device=tiny.CPU)
LAYOUT = [[(0, 0, 7), (1, 0, 5)], [(2, 0, 9)]]


def loaded(folder, **options):
    teacher = HfTeacher(model=str(folder), **options)
    teacher.load(RUN)
    return teacher


@pytest.fixture
def folder(tmp_path):
    tiny.save(tmp_path / "model", "gpt2", vocabulary=80, attn_pdrop=0.5, resid_pdrop=0.5)
    return tmp_path / "model"


@pytest.fixture
def batch():
    return tiny.batch(tiny.documents((7, 5, 9), 80), LAYOUT, vocabulary=80)


def test_reads_what_the_model_says_without_dropout(folder, batch):
    teacher = loaded(folder)
    logits_at = read(teacher, batch)
    positions = torch.tensor([0, 3, 17])
    again = read(teacher, batch)
    assert torch.equal(logits_at(positions), again(positions))
    model = LanguageModel(tiny.model("gpt2", vocabulary=80).eval())
    with torch.no_grad():
        expected = model.logits(model.states(batch))[positions]
    torch.testing.assert_close(logits_at(positions), expected)


def test_the_trunk_runs_once(folder, batch):
    teacher, calls = loaded(folder), []
    teacher._model._trunk.register_forward_hook(lambda *_: calls.append(1))
    logits_at = read(teacher, batch)
    for position in range(6):
        logits_at(torch.tensor([position]))
    assert len(calls) == 1


def test_nothing_of_it_is_trained(folder, batch):
    teacher = loaded(folder)
    assert not any(each.requires_grad for each in teacher._model.model.parameters())
    assert not read(teacher, batch)(batch.valid).requires_grad


def test_likelihoods(folder, batch):
    teacher = loaded(folder)
    labels = batch.labels[batch.valid]
    expected = torch.nn.functional.cross_entropy(
        read(teacher, batch)(batch.valid), labels, reduction="none"
    )
    torch.testing.assert_close(read_nll(teacher, batch)(batch.valid, labels), expected)


def test_logits_are_cut_to_the_shared_ids(folder, batch):
    narrow = replace(batch, vocabulary=70)
    assert read(loaded(folder), narrow)(torch.tensor([1, 2])).shape == (2, 70)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_its_own_type_whatever_the_student_trains_in(folder, batch, name):
    teacher = loaded(folder, dtype=name)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    assert {each.dtype for each in teacher._model.model.parameters()} == {kinds[name]}
    plain = read(teacher, batch)(batch.valid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(read(teacher, batch)(batch.valid), plain)


def test_auto_is_exact_on_a_cpu(folder):
    assert loaded(folder)._model.model.dtype == torch.float32


def test_the_tokenizer_comes_without_weights_and_once(folder):
    (folder / "model.safetensors").unlink()
    teacher = HfTeacher(model=str(folder))
    assert teacher.tokenizer().eos_token == "<|end|>"
    assert teacher.tokenizer() is teacher.tokenizer()


def test_quantising_needs_a_gpu(folder):
    with pytest.raises(RunError, match="needs a CUDA device"):
        loaded(folder, quantise="8bit")


def adapter_of(folder, at):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        tiny.model("gpt2", vocabulary=80),
        peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(at)
    return model


def test_an_adapter(folder, batch, tmp_path):
    adapted = LanguageModel(adapter_of(folder, tmp_path / "adapter").eval())
    teacher = loaded(folder, adapter=str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = adapted.logits(adapted.states(batch))[batch.valid]
    torch.testing.assert_close(read(teacher, batch)(batch.valid), expected)
    plain = loaded(folder)
    assert (read(plain, batch)(batch.valid) - expected).abs().max() > 0.1
    assert plain.fingerprint() != teacher.fingerprint()
    assert not any(each.requires_grad for each in teacher._model.model.parameters())


def test_an_adapter_that_is_not_there(folder, tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(RunError, match="cannot load the adapter"):
        loaded(folder, adapter=str(tmp_path / "gone"))


def test_an_adapter_without_peft(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(RunError, match="the adapter 'x' needs peft"):
        loaded(folder, adapter="x")


def test_fingerprint_is_of_content_and_options(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny.save(tmp_path / name, seed=seed)
    a, b, c = (HfTeacher(model=str(tmp_path / name)) for name in "abc")
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
    assert a.fingerprint() != HfTeacher(model=str(tmp_path / "a"), dtype="bf16").fingerprint()


def test_tokenizer(tmp_path):
    made = tiny.save(tmp_path)
    tokenizer = HfTokenizer(model=str(tmp_path)).load(RUN, None)
    assert tokenizer.get_vocab() == made.get_vocab()


def test_a_tokenizer_must_be_able_to_end_a_text(tmp_path):
    made = tiny.byte_tokenizer()
    made.eos_token = None
    made.save_pretrained(tmp_path)
    with pytest.raises(RunError, match=r"has no token that ends a text \(eos\)"):
        HfTokenizer(model=str(tmp_path)).load(RUN, None)


def test_a_tokenizer_that_is_not_there():
    with pytest.raises(RunError, match=r"--set tokenizer\.model=PATH"):
        HfTokenizer(model="some/tokenizer").load(RUN, None)
