"""Baby Llama: its mixture against the published code's, its known faults, and its recipes."""

import json
import logging
from types import SimpleNamespace

import engine
import given
import numpy as np
import pytest
import torch
from engine import Held
from kdcore_ensemble import Ensemble
from kdcore_evals import Perplexity
from kdcore_losses import ForwardKL
from torch.nn import functional as F

from kdcore.models import vocabulary
from kdcore.objective import teachers
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.runner import RunRequest, run_recipe

pytestmark = pytest.mark.slow

TIME, ROWS = 128, 3  # the weight of 64 is for rows that predict 128 tokens
EFFECTIVE = "stage.student.loss.kl.weight=64"
WORDS = "the cat sat on a mat and saw the small red fox run home again"
SHAPES = {
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2},
    "llama": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    | {"num_attention_heads": 2},
}


@pytest.fixture(scope="module")
def host():
    return PluginManager()


def recipe_of(host, name="babyllama", *sets):
    return read_recipe(name, host, sets=sets)


# ---- the mixture


def published(student, members, rows):
    """The published code's loss of a batch, and its gradient: alpha 0.5, T 2, "batchmean"."""
    ids = torch.stack([torch.as_tensor(row["input_ids"]) for row in rows])
    ours = student(input_ids=ids, use_cache=False).logits[:, :-1]
    with torch.no_grad():
        theirs = [
            member.eval()(input_ids=ids, use_cache=False).logits[:, :-1] for member in members
        ]
    average = torch.stack(theirs).mean(0)
    batchmean = F.kl_div(
        F.log_softmax(ours / 2, -1), F.softmax(average / 2, -1), reduction="batchmean"
    )
    cross_entropy = F.cross_entropy(ours.flatten(0, 1), ids[:, 1:].flatten())
    loss = 0.5 * cross_entropy + 0.5 * (batchmean * 2**2)
    names, weights = zip(*student.named_parameters(), strict=True)
    gradient = torch.autograd.grad(loss, weights)
    return float(loss.detach()), dict(zip(names, gradient, strict=True))


@pytest.fixture(scope="module")
def case(host):
    """A student, two teachers with dropout that are left in training mode, and the answer."""
    dropout = dict.fromkeys(given.NO_DROPOUT, 0.5)
    gpt2 = given.in_double(given.model("gpt2", seed=1, **dropout))
    llama = given.model("llama", seed=2, double=True, attention_dropout=0.5)
    rows = [given.row(TIME + 1, seed=n, document=n) for n in range(ROWS)]
    student = given.model(double=True)
    return SimpleNamespace(
        student=student,
        members=[gpt2, llama],
        rows=rows,
        stage=recipe_of(host, "babyllama", EFFECTIVE).build("student"),
        expected=published(student, [gpt2, llama], rows),
    )


def check(case, average=None, terms=None):
    """One step by the shipped recipe's terms and ensemble."""
    for member in case.members:
        member.train()
    ensemble = Ensemble(
        members=[Held(member) for member in case.members],
        average=average or case.stage.teacher.average,
    )
    found = engine.step(
        case.student, case.rows, terms or case.stage.terms, teacher=ensemble, micro_batch=2
    )
    loss, gradient = case.expected
    assert sum(found.terms.values()) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(found.gradients, gradient, rtol=1e-4, atol=1e-7)


def test_a_weight_of_64_is_the_published_code(case):
    check(case)


def test_without_t_squared_it_is_not(case, monkeypatch):
    monkeypatch.setattr(ForwardKL, "factor", lambda loss, temperature: 1.0)
    with pytest.raises(AssertionError):
        check(case)


def test_half_and_half_in_token_means_is_another_experiment(case, host):
    literal = recipe_of(host).build("student")
    assert [term.weight for term in literal.terms] == [0.5, 0.5]
    with pytest.raises(AssertionError):
        check(case, terms=literal.terms)


def test_averaged_probabilities_are_not_averaged_logits(case):
    with pytest.raises(AssertionError):
        check(case, average="probs")


def test_logits_averaged_after_the_temperature_are_not_raw_ones(case, monkeypatch):
    def tempered(logits, shares):
        mixed = sum(
            share * (each / 2).softmax(-1) for each, share in zip(logits, shares, strict=True)
        )
        return 2 * mixed.log()

    monkeypatch.setattr("kdcore_ensemble._mean", tempered)
    with pytest.raises(AssertionError):
        check(case)


def test_teachers_with_dropout_on_are_not_the_published_ones(case, monkeypatch):
    monkeypatch.setattr(teachers, "_set_eval_mode", lambda teacher: None)
    with pytest.raises(AssertionError):
        check(case)


# ---- the evaluation


def evaluated(case):
    made = engine.trainer(
        case.student,
        case.rows,
        case.stage.terms,
        teacher=Ensemble(members=[Held(member) for member in case.members]),
    )
    made.run.tokenizer = SimpleNamespace()
    return Perplexity().measure(made.run)["nll"]


def check_evaluation(case):
    ids = torch.stack([torch.as_tensor(row["input_ids"]) for row in case.rows])
    logits = case.student(input_ids=ids, use_cache=False).logits[:, :-1]
    plain = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert evaluated(case) == pytest.approx(float(plain.detach()), rel=1e-5)


def test_what_is_evaluated_is_the_plain_cross_entropy(case, monkeypatch):
    monkeypatch.setattr(vocabulary, "bytes_per_id", lambda tokenizer: np.ones(given.VOCABULARY))
    check_evaluation(case)


def test_the_mixture_is_not(case, monkeypatch):
    monkeypatch.setattr(Perplexity, "measure", lambda one, run: {"nll": case.expected[0]})
    with pytest.raises(AssertionError):
        check_evaluation(case)


# ---- the recipes


def test_the_shipped_models_are_those_of_the_paper(host):
    from transformers import AutoConfig, AutoModelForCausalLM

    counts = {}
    for name in ("gpt2", "llama", "student"):
        config = dict(recipe_of(host).build(name).student.config)
        with torch.device("meta"):
            kind = AutoConfig.for_model(config.pop("model_type"), **config, vocab_size=16_000)
            counts[name] = AutoModelForCausalLM.from_config(kind).num_parameters()
    assert counts == {"gpt2": 706_108_416, "llama": 359_973_888, "student": 58_343_936}


def test_both_students_take_equal_steps_on_the_same_rows(host):
    taught, alone = (
        recipe_of(host, name).build("student") for name in ("babyllama", "babyllama_ce")
    )
    assert vars(taught.train) == vars(alone.train)
    assert taught.student.config == alone.student.config
    assert (taught.seed, taught.data.fingerprint()) == (alone.seed, alone.data.fingerprint())
    assert taught.teacher is not None and alone.teacher is None
    assert [term.use for term in alone.terms] == ["ce"]
    assert [stage.name for stage in recipe_of(host, "babyllama_ce").stages] == ["student"]
    in_small = recipe_of(host, "cpu/babyllama")
    student, ce = in_small.build("student"), in_small.build("ce")
    assert vars(student.train) == vars(ce.train)
    assert student.student.config == ce.student.config


def test_random_offset_is_one_set_away(host):
    assert not recipe_of(host).build("gpt2").data.fresh_each_epoch
    moved = recipe_of(host, "babyllama", "data.random_offset=true").build("student")
    assert moved.data.fresh_each_epoch


def run(host, folder, name, sets):
    """Each stage's folder."""
    done = run_recipe(read_recipe(name, host, sets=sets), host, RunRequest(out=folder / "runs"))
    return {path.name.partition(".")[2].rpartition("-")[0]: path for path in done}


def scores(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["eval/nll"] for line in lines if "eval/nll" in line]


@pytest.mark.slow
def test_the_twin_runs_and_all_its_stages_share_a_tokenizer(tmp_path, host):
    steps = [f"stage.{stage}.train.steps=2" for stage in ("gpt2", "llama", "student", "ce")]
    sets = [*steps, "data.stories=20", "data.validation=8", "train.eval_rows=4"]
    folders = run(host, tmp_path, "cpu/babyllama", sets)
    assert folders.keys() == {"gpt2", "llama", "student", "ce"}
    files = {path.joinpath("tokenizer/tokenizer.json").read_bytes() for path in folders.values()}
    assert len(files) == 1
    # The same rows of the same student before training: the same loss, whatever the mixture.
    assert scores(folders["student"])[0] == scores(folders["ce"])[0]


@pytest.mark.slow
def test_the_recipe_runs_on_a_corpus_with_smaller_models(tmp_path, host, caplog):
    caplog.set_level(logging.INFO, logger="kdcore")
    words = WORDS.split()
    for folder, ending, count in (("babylm_10M", "train", 300), ("babylm_dev", "dev", 60)):
        place = tmp_path / "data" / folder
        place.mkdir(parents=True)
        lines = [" ".join(words[n % 9 :] + words[: n % 7]) for n in range(count)]
        (place / f"cbt.{ending}").write_text("\n".join(lines))
        (place / f"childes.{ending}").write_text("\n".join(f"*CHI:\t{line} ." for line in lines))
    shapes = {"gpt2": SHAPES["gpt2"], "llama": SHAPES["llama"], "student": SHAPES["llama"]}
    sets = [
        f"stage.{stage}.student.config.{key}={value}"
        for stage, shape in shapes.items()
        for key, value in shape.items()
    ]
    sets += [f"stage.{stage}.train.steps=3" for stage in shapes]
    sets += ["tokenizer.vocab_size=300", "train.batch=4", "stage.student.train.batch=4"]
    sets += ["data.random_offset=true", EFFECTIVE]
    sets += [
        f"data.path='{tmp_path}/data/babylm_10M'",
        f"data.validation='{tmp_path}/data/babylm_dev'",
    ]
    folder = run(host, tmp_path, "babyllama", sets)["student"]
    assert (folder / "final" / "model.safetensors").is_file()
    assert "train: characters before and after cleaning: cbt " in caplog.text
