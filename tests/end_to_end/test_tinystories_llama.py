"""The shipped `tinystories_llama`: its model, start and rows, and what it lets a model write."""

import itertools
import math

import pytest
import tiny
import torch
from founding_hub import llama2_tokenizer, sentences
from kdcore_init import Init
from kdcore_tinystories import TinyStories

from kdcore import generate
from kdcore.commands import plan as verb
from kdcore.data.rows import pack_texts
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.training.student import from_config

pytestmark = pytest.mark.slow

LAYER = {
    "self_attn.q_proj": 65_536,
    "self_attn.k_proj": 32_768,
    "self_attn.v_proj": 32_768,
    "self_attn.o_proj": 65_536,
    "mlp.gate_proj": 196_608,
    "mlp.up_proj": 196_608,
    "mlp.down_proj": 196_608,
}


@pytest.fixture(scope="module")
def tokenizer():
    return llama2_tokenizer()


@pytest.fixture(scope="module")
def stage():
    return read_recipe("tinystories_llama", PluginManager()).build()


@pytest.fixture(scope="module")
def model(stage, tokenizer):
    return from_config(stage.student, tokenizer)


def test_the_model_has_the_parameters_that_it_had(model):
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes.values()) == 19_532_032
    assert sizes["model.embed_tokens.weight"] == sizes["lm_head.weight"] == 8_192_000
    for layer, (name, size) in itertools.product(range(4), LAYER.items()):
        assert sizes[f"model.layers.{layer}.{name}.weight"] == size
    assert {size for name, size in sizes.items() if "norm" in name} == {256}
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert model.config.pad_token_id is None
    assert model.config.max_position_embeddings == 2048


def test_plan_has_the_table_of_parameters_by_layer(tmp_path, tokenizer, capsys, monkeypatch):
    tokenizer.save_pretrained(tmp_path / "llama")
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(sentences(200, 0)))
    sets = [f"tokenizer.model={tmp_path / 'llama'}", f"data.path={path}"]
    monkeypatch.setenv("COLUMNS", "100")
    verb.plan("tinystories_llama", sets=[*sets, "data.validation_share=0.1"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = {f"layers: {name}, 4 times": (n, 4 * n) for name, n in LAYER.items()}
    expected |= {"embeddings": (8_192_000,) * 2, "head": (8_192_000,) * 2, "norm": (256, 256)}
    expected |= {"layers: norms, 4 times": (512, 2048)}
    for name, numbers in expected.items():
        assert [*name.split(), *(f"{n:,}" for n in numbers)] in lines
    assert ["total", "19,532,032"] in lines


def founding_start(model):
    """The founding script's own loop."""
    for name, parameter in model.named_parameters():
        if "weight" in name and parameter.dim() > 1:
            torch.nn.init.kaiming_uniform_(parameter, mode="fan_in", nonlinearity="leaky_relu")


def test_it_starts_as_the_founding_script_did(stage, tokenizer):
    (patch,) = stage.student.patches
    ours, theirs = (from_config(stage.student, tokenizer) for _ in range(2))
    for model, start in ((ours, patch.apply), (theirs, founding_start)):
        torch.manual_seed(3407)
        start(model)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


STARTS = {  # standard deviation by inputs and outputs
    "kaiming-uniform": lambda inputs, outputs: math.sqrt(2 / inputs),
    "kaiming-normal": lambda inputs, outputs: math.sqrt(2 / inputs),
    "xavier-uniform": lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)),
    "xavier-normal": lambda inputs, outputs: math.sqrt(2 / (inputs + outputs)),
    "normal": lambda inputs, outputs: 0.02,
}


@pytest.mark.parametrize("scheme", STARTS)
def test_every_matrix_starts_with_the_deviation_of_the_formula(scheme, model):
    torch.manual_seed(0)
    Init(scheme=scheme).apply(model)
    for name, matrix in model.named_parameters():
        if matrix.dim() < 2:
            assert torch.equal(matrix, torch.ones_like(matrix)), name
            continue
        outputs, inputs = matrix.shape
        expected = STARTS[scheme](inputs, outputs)
        assert matrix.std().item() == pytest.approx(expected, rel=0.02), name
        assert abs(matrix.mean().item()) < 0.02 * expected, name
        largest = matrix.abs().max().item()
        if "uniform" in scheme:
            assert largest == pytest.approx(math.sqrt(3) * expected, rel=0.01), name
        else:
            assert largest > 3 * expected, name


LONG = " ".join(sentences(40, 7))


def stories(tmp_path, tokenizer, *texts, **options):
    """The recipe's data with these stories, in short rows."""
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(texts))
    given = {"block": 64, "rows": "one", "cut": "left", "bos": False} | options
    return pack_texts(TinyStories(path=str(path), **given), "train", tokenizer)


def test_the_recipe_lays_one_story_a_row_and_cuts_its_beginning(stage):
    data = stage.data
    assert (data.version, data.fraction) == (2, 0.1)
    assert (data.block, data.rows, data.cut, data.eos) == (2048, "one", "left", True)
    assert data.bos is False


@pytest.mark.parametrize("pads_with", [None, "<unk>", "</s>"])
def test_an_over_long_story_is_its_last_tokens_and_one_eos(tmp_path, pads_with):
    tokenizer = llama2_tokenizer()
    tokenizer.pad_token = pads_with
    ids = tokenizer.encode(LONG, add_special_tokens=False)
    assert len(ids) > 64 and tokenizer.encode(LONG)[0] == 1
    rows = stories(tmp_path, tokenizer, LONG, "the old mill")
    assert rows[0]["input_ids"].tolist() == [*ids[-63:], 2]
    assert rows[0]["position"].tolist() == [*range(64)]
    assert rows[1]["input_ids"].tolist() == [
        *tokenizer.encode("the old mill", add_special_tokens=False),
        2,
    ]
    assert rows.cut == 1


def test_an_over_long_story_may_be_split_and_stories_packed(tmp_path, tokenizer):
    whole = [*tokenizer.encode(LONG, add_special_tokens=False), 2]
    split = stories(tmp_path, tokenizer, LONG, cut="split")
    found = [token for row in split for token in row["input_ids"].tolist()]
    assert found == whole
    assert all(len(row["input_ids"]) <= 64 for row in split) and len(split) == -(-len(whole) // 64)

    packed = stories(tmp_path, tokenizer, LONG, *sentences(30, 1), rows="pack")
    assert packed.lengths.mean() / 64 > 0.9 and packed.lengths.max() <= 64
    ids = [row["input_ids"].tolist() for row in packed]
    assert sum(row.count(2) for row in ids) == 31 and not any(1 in row for row in ids)


def test_the_recipe_writes_evaluates_and_saves_as_it_should(stage):
    train = stage.train
    assert (train.eval_first, train.eval_every, train.save_every, train.save_keep) == (
        True,
        1000,
        1000,
        2,
    )
    assert (train.epochs, train.batch, train.lr, train.schedule) == (2, 4, 1e-4, "cosine")
    (samples,) = (each for each in stage.evals if each.name == "samples")
    assert len(samples.prompts) == 2
    assert (samples.temperature, samples.top_k, samples.top_p) == (0.8, 40, 0.95)
    assert stage.seed == 3407


def small(tokenizer):
    return tiny.model(vocabulary=len(tokenizer), bos_token_id=1, eos_token_id=2)


def test_left_padded_prompts_continue_as_they_would_alone(stage):
    tokenizer = tiny.llama_tokenizer()
    (samples,) = (each for each in stage.evals if each.name == "samples")
    prompts, model = [*samples.prompts, "She"], small(tokenizer)
    greedy = {"temperature": 0.0, "max_new_tokens": 12}
    together = generate(model, tokenizer, prompts, **greedy)
    assert together == [generate(model, tokenizer, [each], **greedy)[0] for each in prompts]
    assert len({*together}) == 3


def test_a_word_that_begins_after_the_prompt_keeps_its_space(monkeypatch):
    tokenizer = tiny.llama_tokenizer()
    model = small(tokenizer)
    text = "Once upon a time"
    ids = tokenizer.encode(text, add_special_tokens=False)
    at = next(n for n in range(1, len(ids)) if tokenizer.convert_ids_to_tokens(ids[n])[0] == "▁")
    assert tokenizer.decode(ids[at:]) == text[len(tokenizer.decode(ids[:at])) + 1 :]

    def go_on(input_ids, **options):
        return torch.cat([input_ids, torch.tensor([ids[at:]])], dim=1)

    monkeypatch.setattr(model, "generate", go_on)
    begun = tokenizer.decode(ids[:at])
    assert begun + generate(model, tokenizer, [begun])[0] == text
