from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from adapted import save_adapter
from kdcore_hf import HfTeacher, HfTokenizer, _moved
from torch.utils._python_dispatch import TorchDispatchMode

from kdcore import LanguageModel, RunError, load_model, read, read_nll
from kdcore.errors import RecipeError
from kdcore.models.offload import offload_layers
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow

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


RECIPE = """
[student]
model = "./stu"
[tokenizer]
use = "hf"
model = "./tok"
[teacher]
use = "hf"
model = "./tea"
adapter = "org/adapter"
[data]
use = "stories"
[[loss]]
use = "kl"
[train]
lr = 1e-3
steps = 1
"""


def test_folders_that_are_not_there_are_errors_of_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(RECIPE)
    with pytest.raises(RecipeError) as raised:
        read_recipe("mine.toml", PluginManager()).refuse_missing()
    said = [each.message for each in raised.value.errors]
    names = ("./stu", "./tok", "./tea")
    assert sorted(said) == sorted(f"there is no folder {name!r} in {tmp_path}" for name in names)
    for name in names:
        (tmp_path / name).mkdir()
    read_recipe("mine.toml", PluginManager()).refuse_missing()


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


# Adapters


@pytest.fixture
def adapter(folder, tmp_path):
    """The adapter's folder, which names its base, and what is right to say with it."""
    pytest.importorskip("peft")
    base = tiny.model("gpt2", vocabulary=80, attn_pdrop=0.5, resid_pdrop=0.5)
    model = save_adapter(base, tmp_path / "adapter", base=folder, scale=1.0)
    return str(tmp_path / "adapter"), LanguageModel(model)


@pytest.mark.parametrize("named", ["base and adapter", "the adapter alone"])
def test_an_adapter(folder, adapter, batch, named):
    place, model = adapter
    alone = HfTeacher(model=place)
    teacher = HfTeacher(model=str(folder), adapter=place) if named[0] == "b" else alone
    teacher.load(RUN)
    with torch.no_grad():
        expected = model.logits(model.states(batch))[batch.valid]
    torch.testing.assert_close(read(teacher, batch)(batch.valid), expected)
    again = read(teacher, batch)(batch.valid)
    assert torch.equal(again, read(teacher, batch)(batch.valid))
    plain = loaded(folder)
    assert (read(plain, batch)(batch.valid) - expected).abs().max() > 0.1
    assert plain.fingerprint() != teacher.fingerprint()
    assert not any(each.requires_grad for each in teacher._model.model.parameters())
    assert teacher.tokenizer().eos_token == "<|end|>"
    assert teacher.architecture(tiny.CPU).vocab_size == 80


def test_an_adapter_that_does_not_fit(adapter, tmp_path):
    tiny.save(tmp_path / "wide", "gpt2", n_embd=64)
    with pytest.raises(RunError, match=r"the adapter .* does not fit .*wide': its .* it was made"):
        loaded(tmp_path / "wide", adapter=adapter[0])


def test_an_adapter_that_is_not_there(folder, tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(RunError, match="cannot load the adapter"):
        loaded(folder, adapter=str(tmp_path / "gone"))


def test_an_adapter_without_peft(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(RunError, match="the adapter 'x' needs peft"):
        loaded(folder, adapter="x")


def test_peft_is_missed_before_anything_is_loaded(folder, adapter, monkeypatch):
    plain, named = HfTeacher(model=str(folder)), HfTeacher(model=str(folder), adapter="some/where")
    assert [*plain.faults(None), *named.faults(None)] == []
    monkeypatch.setattr("kdcore_hf.find_spec", lambda name: None)
    assert [*plain.faults(None)] == []
    said = 'the adapter {!r} needs peft: pip install "kdcore[lora]"'
    assert [*named.faults(None)] == [said.format("some/where")]
    assert [*HfTeacher(model=adapter[0]).faults(None)] == [said.format(adapter[0])]


# Where the weights lie


def test_its_own_device(folder, monkeypatch):
    """The batch goes there, and what it says comes back."""
    seen = []
    monkeypatch.setattr(
        "kdcore_hf.load_model",
        lambda name, device, **_: seen.append(device) or load_model(name, dtype=torch.float32),
    )
    loaded(folder, device="cuda:1")
    loaded(folder)
    assert seen == [torch.device("cuda:1"), tiny.CPU]


class Crossing(TorchDispatchMode):
    """Notes the last size of every tensor of floats that goes from one device to another."""

    def __init__(self):
        super().__init__()
        self.widths = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        packet, copies = func.overloadpacket, (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if packet in copies and found.is_floating_point():
            source = args[1] if packet is copies[1] else args[0]
            if source.device != found.device:
                self.widths.add(found.shape[-1])
        return found


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_teacher_on_another_gpu_sends_states_and_its_head_is_at_home(folder):
    home, away = torch.device("cuda:0"), torch.device("cuda:1")
    batch = tiny.batch(tiny.documents((7, 5, 9), 80), LAYOUT, vocabulary=80, device=home)
    teacher = HfTeacher(model=str(folder), device=str(away), dtype="fp32")
    teacher.load(SimpleNamespace(device=home))
    with Crossing() as crossing:
        logits = read(teacher, batch)(batch.valid)
    assert logits.device == home and logits.shape[1] == 80
    assert crossing.widths == {32}  # of the states


def test_a_batch_moves_with_its_mask(batch):
    there = torch.device("meta")
    moved = _moved(replace(batch, attention_mask=torch.ones_like(batch.input_ids)), there)
    read_by_models = (moved.input_ids, moved.position_ids, moved.attention_mask)
    assert {tensor.device for tensor in read_by_models} == {there}
    assert _moved(batch, tiny.CPU) is batch


def test_quantising_and_offloading_are_for_gpus(folder):
    """At run time: a recipe is checked on other machines than it runs on."""
    for options, said in (({"quantise": "8bit"}, "CUDA"), ({"offload": True}, "leave offload out")):
        assert [*HfTeacher(model=str(folder), **options).faults(None)] == []
        with pytest.raises(RunError, match=said):
            loaded(folder, **options)
        with pytest.raises(ValueError, match='is for a GPU, and device is "cpu"'):
            HfTeacher(model=str(folder), device="cpu", **options)
    with pytest.raises(ValueError, match="exclude each other"):
        HfTeacher(model=str(folder), quantise="4bit", offload=True)


def test_bitsandbytes_is_missed_where_there_is_a_gpu(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("kdcore_hf.find_spec", lambda name: None)
    [said] = HfTeacher(model=str(folder), quantise="4bit").faults(None)
    assert said == 'quantise = "4bit" needs bitsandbytes: pip install "kdcore[gpu]"'


def test_an_offloaded_teacher_says_the_same(folder, batch):
    plain, teacher = loaded(folder), HfTeacher(model=str(folder))
    model = load_model(str(folder), dtype=torch.float32)
    offload_layers(model, tiny.CPU)
    teacher._model = LanguageModel(model.eval().requires_grad_(False))
    for _ in range(2):
        assert torch.equal(read(teacher, batch)(batch.valid), read(plain, batch)(batch.valid))


def test_a_plan_knows_that_layers_stay_on_the_cpu(folder):
    teacher = HfTeacher(model=str(folder), offload=True)
    assert not teacher.architecture(tiny.CPU).offload
    assert teacher.architecture(torch.device("cuda")).offload


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
    with pytest.raises(RunError, match=r"has no end\-of\-text token \(eos\)"):
        HfTokenizer(model=str(tmp_path)).load(RUN, None)


def test_a_tokenizer_that_is_not_there():
    with pytest.raises(RunError, match=r"--set tokenizer\.model=PATH"):
        HfTokenizer(model="some/tokenizer").load(RUN, None)
