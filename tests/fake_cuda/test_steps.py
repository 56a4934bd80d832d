"""What a training step does on the fake device: precisions, attention, kernels, two devices."""

import math

import numpy as np
import pytest

from fake_cuda.scenario import joined, on_cpu, on_device, python, records, report, sets

pytestmark = pytest.mark.slow

RECIPE = """
[tokenizer]
use = "bpe"
vocab_size = 300

[data]
use = "stories"
stories = 60
validation = 8
block = 256

[[loss]]
use = "ce"

[train]
steps = 6
batch = 4
micro_batch = 4
lr = 1e-3
log_every = 100
eval_every = 100
save_every = 100
eval_first = false
"""

DISTILLED = """
[stage.teacher]

[stage.student.teacher]
use = "hf"
model = "@teacher"
device = "cuda:1"
[[stage.student.loss]]
use = "kl"
"""

SELECTED = """
[stage.reference]
""" + "".join(
    f"""
[stage.{name}.selection]
use = "rho"
keep = {keep}
[stage.{name}.selection.reference]
use = "cached"
kind = "nll"
teacher = {{use = "hf", model = "@reference"}}
"""
    for name, keep in (("fills", 0.5), ("reads", 0.3))
)

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
GPT2 = {"n_embd": 32, "n_head": 4, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}


def model(**config):
    return sets(**{f"student__config__{key}": value for key, value in config.items()})


KINDS = {
    "llama": model(model_type="llama", num_hidden_layers=2, **LLAMA),
    "qwen2": model(model_type="qwen2", num_hidden_layers=2, **LLAMA, num_key_value_heads=2),
    "gpt2": model(model_type="gpt2", n_layer=2, **GPT2),
}

KERNELS = {"llama": 143, "qwen2": 152, "gpt2": 76}
"""Operations of a layer in a step in bf16, forward and backward: may only become fewer."""

ELSEWHERE = {"llama": 87, "qwen2": 87, "gpt2": 66}
"""Those outside of the layers, such as the head's and the optimizer's."""


def recipe(folder, text=RECIPE):
    (folder / "small.toml").write_text(text)
    return "small.toml"


WITH_BF16_WEIGHTS = {"llama": 117}
MOST = [
    *((kind, False, n) for kind, n in KERNELS.items()),
    *((k, True, n) for k, n in WITH_BF16_WEIGHTS.items()),
]


def test_packed_attention_and_the_kernels_of_a_layer(tmp_path):
    path, commands = recipe(tmp_path), []
    for kind, weights, _ in MOST:
        layers = "n_layer" if kind == "gpt2" else "num_hidden_layers"
        options = [*KINDS[kind], *sets(train__precision="bf16", train__bf16_weights=weights)]
        for count in (2, 3):
            named = sets(name=f"{kind}-{weights}-{count}")
            commands.append(on_device(path, *options, *named, *model(**{layers: count})))
    python(tmp_path, *joined(commands))
    found = report(tmp_path)
    for kind, weights, most in MOST:
        two, three = (found[f"{kind}-{weights}-{count}"] for count in (2, 3))
        assert two.attentions_per_step == 2, (kind, two)
        layer = three.operations_per_step - two.operations_per_step
        assert layer <= most, (kind, weights)
        if not weights:  # which are cast by themselves
            assert two.operations_per_step - 2 * layer <= ELSEWHERE[kind] + 1e-9
        assert not two.waits, kind


def test_cuda_graphs_launch_the_trunk_at_once_and_learn_the_same(tmp_path):
    """Whole rows, two micro-batches a step whose gradients add up, tied weights.

    What a replay reads from outside the graph's own memory would be that of the capture.
    """
    path = recipe(tmp_path)
    options = [*KINDS["llama"], *model(num_hidden_layers=1, tie_word_embeddings=True)]
    options += sets(train__precision="bf16", train__micro_batch=2)
    options += sets(data__rows="chunk", data__block=32)
    commands = [
        on_device(
            path,
            *options,
            *sets(name=f"{how}-{weights}", train__bf16_weights=weights),
            *sets(train__cuda_graphs=how == "replayed"),
            *("--out", how),  # a run is the same with graphs, and is not done twice
        )
        for weights in (False, True)
        for how in ("launched", "replayed")
    ]
    python(tmp_path, *joined(commands))
    found = records(tmp_path / "launched") | records(tmp_path / "replayed")
    counted = report(tmp_path)
    for weights in (False, True):
        launched, replayed = f"launched-{weights}", f"replayed-{weights}"
        for key in ("loss", "eval/nll"):
            assert math.isclose(found[launched][key], found[replayed][key], rel_tol=1e-6), key
        assert not counted[replayed].waits
        assert counted[replayed].attentions_per_step == 0 < counted[launched].attentions_per_step
        fewer = counted[launched].operations_per_step - counted[replayed].operations_per_step
        assert fewer > 2 * 100  # a layer, twice


def test_cuda_graphs_draw_the_dropout_of_a_run_without_them(tmp_path):
    """Warm-up and capture draw none: a resumed run, which captures anew, ends as if never ended."""
    path = recipe(tmp_path)
    options = [*KINDS["gpt2"], *model(n_layer=1, resid_pdrop=0.5)]
    options += sets(train__precision="bf16", data__rows="chunk", data__block=32)
    replayed = [*sets(name="replayed", train__cuda_graphs=True), "--out", "replayed"]
    python(tmp_path, *joined([on_device(path, *options), on_device(path, *options, *replayed)]))
    found = records(tmp_path / "device") | records(tmp_path / "replayed")
    assert math.isclose(found["small"]["loss"], found["replayed"]["loss"], rel_tol=1e-6)


def test_it_learns_in_every_precision(tmp_path):
    path = recipe(tmp_path)
    within, waits = {"fp32": 1e-5, "bf16": 1e-3, "fp16": 1e-3}, {"fp32": 0, "bf16": 0, "fp16": 1}
    inline = sets(train__workers=0)  # copies in another thread are not counted
    commands = [
        on_device(path, *KINDS["llama"], *inline, *sets(name=each, train__precision=each))
        for each in within
    ]
    here = on_cpu(path, *KINDS["llama"], *sets(train__precision="fp32"))
    python(tmp_path, *joined([here, *commands]))
    (wanted,), found = records(tmp_path / "cpu").values(), records(tmp_path / "device")
    counted = report(tmp_path)
    for each in within:
        assert math.isclose(found[each]["eval/nll"], wanted["eval/nll"], rel_tol=within[each]), each
        assert counted[each].waits_per_step <= waits[each], counted[each].waits


def test_a_selection_waits_only_for_what_its_cache_writes_to_the_disk(tmp_path):
    path = recipe(tmp_path, RECIPE + SELECTED)
    python(tmp_path, *on_device(path, *KINDS["llama"], *sets(train__precision="bf16")))
    counted = report(tmp_path)
    assert counted["small.fills"].waits_per_step == 1, counted["small.fills"].waits
    assert not counted["small.reads"].waits


def test_grouped_queries_in_float32_never_take_the_products_of_time_and_time(tmp_path):
    """Of the kernels for float32, only torch's plain products know groups."""
    path = recipe(tmp_path)
    options = [*KINDS["qwen2"], *sets(train__precision="fp32")]
    python(tmp_path, *on_device(path, *options))
    (counted,) = report(tmp_path).values()
    assert counted.attention["efficient"] and not counted.attention["math"], counted.attention


def test_a_cpu_that_was_asked_for_computes_in_float32(tmp_path):
    """Although there is a GPU: bf16 is many times slower on a CPU."""
    path = recipe(tmp_path)
    named = [*KINDS["llama"], *sets(name="named", train__precision="fp32")]
    python(tmp_path, *joined([on_cpu(path, *KINDS["llama"]), on_cpu(path, *named)]))
    found = records(tmp_path / "cpu")
    assert found["small"]["eval/nll"] == found["named"]["eval/nll"]


def test_a_teacher_on_the_second_device_says_the_same(tmp_path):
    path = recipe(tmp_path, RECIPE + DISTILLED)
    options = [*KINDS["llama"], *sets(train__precision="bf16")]
    beside = sets(name="beside", stage__student__teacher__device="cuda:0")
    python(tmp_path, *joined([on_device(path, *options), on_device(path, *options, *beside)]))
    found = records(tmp_path / "device")
    assert found["small.student"]["loss/kl"] == found["beside.student"]["loss/kl"]
    assert found["small.student"]["eval/nll"] == found["beside.student"]["eval/nll"]


CACHED = """
[stage.teacher]

[stage.student.teacher]
use = "cached"
kind = "topk"
k = 8
teacher = {use = "hf", model = "@teacher", dtype = "fp32"}
[[stage.student.loss]]
use = "kl"
"""


def test_a_probe_for_the_micro_batch_stores_nothing_of_made_up_rows(tmp_path):
    """Six steps see all rows, so both runs store all tokens."""
    path = recipe(tmp_path, RECIPE + CACHED)
    options = [*KINDS["llama"], *model(num_hidden_layers=1), *sets(data__stories=16)]
    options += sets(train__precision="fp32")
    probed = [*sets(train__micro_batch="auto"), "--out", "probed"]
    python(tmp_path, *joined([on_device(path, *options), on_device(path, *options, *probed)]))
    (probed_ids,), (found,) = (
        [*(tmp_path / out).glob("caches/*/ids.i32")] for out in ("device", "probed")
    )
    same = np.fromfile(probed_ids, np.int32) == np.fromfile(found, np.int32)
    assert same.mean() > 0.99  # ties aside


def test_an_offloaded_teacher_says_the_same_and_nothing_waits_for_its_layers(tmp_path):
    """A copy for each layer, out of pinned memory."""
    path = recipe(tmp_path, RECIPE + DISTILLED)
    options = [
        *KINDS["llama"],
        *sets(train__precision="bf16", stage__student__teacher__device="cuda:0"),
    ]
    options += sets(stage__teacher__student__config__num_hidden_layers=4)
    moved = sets(name="moved", stage__student__teacher__offload=True)
    python(tmp_path, *joined([on_device(path, *options), on_device(path, *options, *moved)]))
    found, counted = records(tmp_path / "device"), report(tmp_path)
    assert found["small.student"]["loss/kl"] == found["moved.student"]["loss/kl"]
    assert counted["moved.student"].waits_per_step == 0, counted["moved.student"].waits
    copies = [
        counted[name].operations.get("aten.copy_.default", 0)
        for name in ("small.student", "moved.student")
    ]
    assert copies[1] - copies[0] == 4 * counted["moved.student"].steps


def test_verbs_measure_plan_and_write_on_the_device(tmp_path):
    path, options = recipe(tmp_path), [*KINDS["llama"], *sets(train__precision="bf16")]
    there = ["--out", "device"]
    verbs = [
        ["kdcore", "eval", "last", "--json", *there],
        ["kdcore", "plan", path, *options],
        ["kdcore", "generate", "last", "--prompt", "One day", *there],
        ["kdcore", "show", "--tokens", "last", *there],
    ]
    said = python(tmp_path, *joined([on_device(path, *options), *verbs]))
    (found,) = records(tmp_path / "device").values()
    assert str(found["eval/nll"]) in said  # of `eval`, to the last digit
    assert "memory of the GPU" in said and "One day" in said
