"""`kdcore plan`: what is known of a recipe, on 80 columns, and what is not."""

from types import SimpleNamespace

import pytest
import typer
from kdcore_selections import Rho
from recorded_runs import FORMULA, expect
from typer.testing import CliRunner
from whole_runs import recipe_text

from kdcore import Teacher, UsageError
from kdcore.analysis.hours import Hours
from kdcore.analysis.memory import Estimate
from kdcore.analysis.parameters import Part
from kdcore.analysis.plan import StagePlan
from kdcore.analysis.processes import ProcessMemory
from kdcore.api.train_options import TrainOptions
from kdcore.commands import plan as verb

pytestmark = pytest.mark.slow

PARTS = [
    Part("embeddings", 1, 49_152, 0),
    Part("layers: self_attn", 2, 16_384, 16_384),
    Part("layers: norms", 2, 128, 0),
    Part("head", 1, 0, 0, "tied: the embeddings are used"),
]
MIB = 2**20
RATES = "from operations and bytes, at 200 GFLOP/s and 30 GB/s as measured here"
HOURS = Hours(3000.0, "predicted", RATES)


def estimate(**changes):
    memory = [("libraries", 500 * MIB), ("student: weights", 3 * MIB), ("activations", 40 * MIB)]
    about = dict(
        parts=PARTS,
        micro_batch=8,
        device="cpu",
        memory=memory,
        peak=530 * MIB,
        checkpointed=4 * MIB,
        checkpoint=6 * MIB,
        final=2 * MIB,
        unknown=[],
    )
    return Estimate(**{**about, **changes})


def plan_of(selection=None, scope="step", block=128, **changes):
    train = TrainOptions(**{"lr": 6e-3, "steps": 150, "batch": 16, **changes.pop("train", {})})
    stage = SimpleNamespace(
        name="kd",
        run_name="mine.kd",
        train=train,
        selection=selection,
        scope=scope,
        data=SimpleNamespace(block=block),
    )
    about = dict(
        stage=stage,
        components={
            "student": "llama(hidden_size=64, num_hidden_layers=2), fresh",
            "tokenizer": "bpe(vocab_size=768)",
            "data": "stories(block=128)",
            "teacher": "hf(model='@teacher')",
        },
        objective=FORMULA,
        symbols=[("mean_kept", "the mean over some"), ("y", "the next token")],
        ids=768,
        documents=60,
        rows=30,
        tokens=6_000,
        steps=150,
        estimate=estimate(),
        bytes_per_token=0,
        unknown=[],
    )
    return StagePlan(**{**about, **changes})


@pytest.fixture
def say(monkeypatch, capsys):
    """What the verb says of these plans."""

    def said(*plans, columns="80", teachers=(), price=None):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(verb, "plans_of", lambda recipe, gpus: iter(plans))
        monkeypatch.setattr(verb, "predicted", lambda plan: HOURS if plan.steps else None)
        stage = SimpleNamespace(components=lambda: teachers)
        read = SimpleNamespace(notes=["a note"], sweep=None, build=lambda name, finals: stage)
        monkeypatch.setattr(verb, "stage_outputs", lambda recipe, name, out: {})
        monkeypatch.setattr(verb, "read_recipe", lambda *arguments, **options: read)
        verb.plan("mine", price=price)
        printed = capsys.readouterr()
        assert printed.err == "a note\n"
        return printed.out

    return said


def nothing_known():
    missing = "cannot load 'a/b': not a folder here and the hub cannot be reached"
    return plan_of(
        components={"student": "a/b", "data": "text(path='c/d')", "selection": "rho(keep=0.3)"},
        selection=Rho.__new__(Rho),
        train={"steps": None, "epochs": 3.0},
        unknown=[f"the tokenizer: {missing}", f"the student: {missing}", "memory: no"],
        **dict.fromkeys(("ids", "documents", "rows", "tokens", "steps", "estimate")),
    )


def test_everything_that_is_known_on_80_columns(say):
    said = say(plan_of(), nothing_known())
    assert max(map(len, said.splitlines())) <= 80
    expect("plan_80", said)


def test_hours_are_reported_with_their_price(say):
    said = say(plan_of(), plan_of(), price=2.5)
    assert "  time  about 50:00 (0.83 device hours, 2.08 in money), predicted: from" in said
    assert "time of all stages\n    about 1:40:00 (1.7 device hours, 4.17 in money)\n" in said
    assert "of all stages" not in say(nothing_known(), nothing_known())


def test_the_memory_of_several_gpus(say):
    gb = 10**9
    found = [
        ProcessMemory(1, 2, 200 * gb, None, None),
        ProcessMemory(8, 1, 250 * gb, 71 * gb, 30 * gb),
    ]
    lines = say(plan_of(processes=found)).splitlines()
    at = next(n for n, line in enumerate(lines) if "each of several GPUs" in line)
    assert [" ".join(line.split()) for line in lines[at : at + 4]] == [
        "each of several GPUs (predicted, 2 rows at once), and the smallest card",
        "GPUs each has all card student sharded card and teachers card",
        "1 200.0 GB none",
        "8 250.0 GB none 71.0 GB 80 GB 30.0 GB 40 GB",
    ]


def test_a_layout_that_nothing_has_is_left_out(say):
    said = say(plan_of(processes=[ProcessMemory(2, 1, 10**9, 10**9, None)]))
    assert "student sharded" in said and "and teachers" not in said


@pytest.mark.parametrize(
    ("gpus", "counts"), [(0, []), (1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])]
)
def test_gpus_in_powers_of_two(gpus, counts):
    assert verb._counts(gpus) == counts


def test_nothing_is_cut_off_where_it_is_narrow(say):
    said = say(plan_of(), nothing_known(), columns="50")
    assert max(map(len, said.splitlines())) <= 50
    assert "…" not in said


def test_all_lists_each_tensor_and_the_tree_of_modules(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    verb.plan("quickstart", sets=["stage.kd.student.config.num_hidden_layers=1"], every=True)
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert any(
        row[:1] == ["model.layers.0.self_attn.q_proj.weight"] and row[-2:] == ["yes", "yes"]
        for row in rows
    )
    assert any(row[:1] == ["model.norm.weight"] and row[-2:] == ["yes", "no"] for row in rows)
    assert "(self_attn): LlamaAttention(" in said


def facts(plan):
    return dict(verb._facts(plan))


@pytest.mark.parametrize(
    "train, said",
    [
        ({}, "0.006, cosine, no warm-up"),
        (
            {"warmup": 20, "min_lr": 0.1},
            "0.006, cosine to 10 % of it, 20 steps of warm-up, the first at rate 0",
        ),
        (
            {"warmup": 0.1},
            "0.006, cosine, 10 % of the steps as warm-up (15 steps), the first at rate 0",
        ),
        ({"schedule": "constant_with_warmup"}, "0.006, constant with warmup, no warm-up"),
        (
            {"schedule": "constant", "warmup": 20, "min_lr": 0.1},
            '0.006, constant, no warm-up (train.warmup needs "constant_with_warmup")',
        ),
    ],
)
def test_the_rate_in_words(train, said):
    assert facts(plan_of(train=train))["rate"] == said


@pytest.mark.parametrize(
    "batch, micro, device, said",
    [
        (8, 8, "cpu", "8 rows at once; about 16 documents a step"),
        (
            20,
            8,
            "cpu",
            "20 rows, in 3 micro-batches of at most 8; about 40 documents a step",
        ),
        (
            8,
            8,
            "cuda",
            "8 rows at once, as the GPU's memory allows; about 16 documents a step",
        ),
    ],
)
def test_the_batch_in_words(batch, micro, device, said):
    plan = plan_of(train={"batch": batch}, estimate=estimate(micro_batch=micro, device=device))
    assert facts(plan)["batch"] == said


def test_a_batch_of_documents_in_words():
    train = {"batch_documents": 20}
    said = "20 documents a step, about 10 rows, in 2 micro-batches of at most 8"
    assert facts(plan_of(train=train, estimate=estimate(micro_batch=8)))["batch"] == said
    assert facts(plan_of(train=train, rows=None, tokens=None))["batch"] == "20 documents a step"
    trained = facts(plan_of(train=train))["trains"]
    assert trained == "150 steps, 50 epochs, about 300,000 tokens"


def test_how_long_it_trains_in_words():
    assert facts(plan_of())["trains"] == "150 steps, 80 epochs, about 480,000 tokens"
    assert facts(plan_of(rows=None, tokens=None))["trains"] == "150 steps"
    unknown = plan_of(train={"steps": None, "tokens": 1_500_000}, steps=None)
    assert facts(unknown)["trains"] == "1.50M tokens: steps are not known"


def test_what_a_selection_keeps_in_words():
    rho = Rho.__new__(Rho)
    components = {"student": "x", "data": "y", "selection": "rho(keep=0.3)"}
    step = facts(plan_of(selection=rho, components=components))["keeps"]
    assert step.startswith("rho(keep=0.3): Tokens with the highest excess loss: the student")
    assert step.endswith(" Chosen among the tokens of the optimizer step, about 3,200")
    alone = facts(plan_of(selection=rho, scope="micro_batch", components=components))["keeps"]
    assert alone.endswith(" Chosen among the tokens of each micro-batch alone")


@pytest.mark.parametrize(
    "train, steps, rows, kept",
    [
        ({"save_every": "epoch"}, 150, 30, 3),
        ({"save_every": "epoch"}, 3, 30, 2),
        ({"save_every": 100}, 150, 30, 2),
        ({"save_every": 100}, 50, 30, 1),
        ({"save_every": 1, "save_keep": 10}, 150, 30, 11),
        ({}, None, None, 3),
    ],
)
def test_checkpoints_that_lie_there_at_once(train, steps, rows, kept):
    assert verb._kept(plan_of(train=train, steps=steps, rows=rows)) == kept


RECIPE = recipe_text(
    {
        "tokenizer.vocab_size": 300,
        "data.stories": 12,
        "data.validation": None,
        "data.block": 64,
        "train.steps": 2,
        "loss.weight": 0.5,
    }
)


def test_the_verb_on_a_recipe(tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE)
    app = typer.Typer()
    app.command()(verb.plan)
    words = [str(tmp_path / "mine.toml"), "--set", "loss.ce.weight=0.25", "--log", "files"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    assert "  loss = 0.25 * mean_all(CE(q(1), y))\n" in result.stdout
    assert "12 documents" in result.stdout and "not known" not in result.stdout
    assert "\x1b" not in result.stdout


def test_an_invalid_recipe_is_reported_before_anything_else(tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE.replace("steps", "stepz"))
    with pytest.raises(UsageError, match="stepz"):
        verb.plan(str(tmp_path / "mine.toml"))


class Thin(Teacher):
    """Knows something of itself."""

    name = "thin"

    def warnings(self, recipe, caches):
        yield f"thin ids, by what lies in {caches}"


class Away(Teacher):
    """Its model is not here."""

    name = "away"

    def warnings(self, recipe, caches):
        raise UsageError("no such model")


def test_what_a_teacher_says_of_itself(say):
    assert "  thin ids, by what lies in runs/caches\n" in say(nothing_known(), teachers=[Thin()])
    assert say(nothing_known(), teachers=[Away()]) == say(nothing_known())
