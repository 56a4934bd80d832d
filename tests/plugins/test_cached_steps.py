"""Whole optimizer steps with the teacher `cached` against `oracle`, and recipes that name it."""

import copy
from functools import cache
from types import SimpleNamespace

import cases
import engine
import oracle
import pytest
import tiny
import torch
from caching import Texts
from cases import MIXED, ROWS, SHARE, assert_equal
from engine import term
from given import VOCABULARY
from kdcore_cached import CachedTeacher
from kdcore_losses import CrossEntropy, ForwardKL, JensenShannon, ReverseKL
from kdcore_selections import Rho

from kdcore import RecipeError, Teacher, component
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow

K = 6


@component
class Known(Teacher):
    """One of the cases' models, in float64."""

    name = "known"
    number: int = 1

    def read(self, batch):
        return engine.Held(cases.model(seed=self.number)).read(batch)


def loaded(folder, *losses, number=1, **options):
    teacher = CachedTeacher(teacher=Known(number=number), **options)
    run = SimpleNamespace(
        caches=folder / "caches",
        device=tiny.CPU,
        data=Texts(),
        tokenizer=tiny.byte_tokenizer(),
        main=True,
        recipe=SimpleNamespace(components=lambda: losses),
        say=lambda said: None,
    )
    teacher.load(run)
    return teacher


def likeliest(logits):
    return sorted(range(len(logits)), key=lambda n: -logits[n])[:K]


def of_buckets(loss):
    if not loss.needs_teacher:
        return loss
    made = copy.copy(loss)
    object.__setattr__(made, "known", likeliest)
    object.__setattr__(made, "tempers_first", True)
    return made


@cache
def rounded(temperature, size=VOCABULARY):
    """A teacher whose buckets are what half precision leaves: the others share theirs alike."""
    model = oracle.model_teacher(cases.model(seed=1), size)

    def of(row):
        return torch.stack([_spread(logits, size, temperature) for logits in model(row)])

    return of


def _spread(logits, size, temperature):
    ids = likeliest(logits)
    known = torch.softmax(logits, -1)[ids].log().half().double()
    at = torch.softmax(logits / temperature, -1)
    others = (1 - at[ids].sum()).log().half().double().exp()
    odds = others / (1 - others)
    mass = others if temperature == 1 else (known / temperature).exp().sum() * odds
    found = (temperature * (mass / (size - K)).log()).expand(size).clone()
    found[ids] = known
    return found


@pytest.mark.parametrize("times", ["stored first", "read"])
@pytest.mark.parametrize(
    "loss", [ForwardKL(temperature=2.0), ReverseKL(), JensenShannon(beta=0.2, temperature=0.7)]
)
def test_top_k_equals_whole_logits_that_are_coarsened(tmp_path, loss, times):
    terms = [term(loss, 0.7), term(CrossEntropy(), 0.3)]
    for _ in range(1 if times == "stored first" else 2):
        teacher = loaded(tmp_path, loss, kind="topk", k=K)
        found = engine.step(cases.model(), ROWS["packed"], terms, teacher=teacher, micro_batch=3)
    expected = oracle.step(
        cases.model(),
        ROWS["packed"],
        [term(of_buckets(t.loss), t.weight) for t in terms],
        vocabulary=VOCABULARY,
        teacher=rounded(loss.temperature),
    )
    rounding = 1e-10 if loss.temperature == 1 else 1e-6  # the others' logit is made in float32
    assert_equal(found, expected, loss=rounding, gradient=rounding)


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_a_step_of_rho_is_that_of_the_live_reference(tmp_path, micro_batch):
    teacher, _ = cases.teacher_of()
    options = {"teacher": teacher, "micro_batch": micro_batch}
    rows = ROWS["packed"]
    live = engine.step(
        cases.model(), rows, MIXED, selection=Rho(keep=SHARE, reference=Known(number=2)), **options
    )
    for _ in range(2):
        selection = Rho(keep=SHARE, reference=loaded(tmp_path, number=2))
        found = engine.step(cases.model(), rows, MIXED, selection=selection, **options)
        assert found.kept == live.kept and found.terms == live.terms
        assert all(
            torch.equal(found.gradients[name], live.gradients[name]) for name in live.gradients
        )
    assert_equal(found, cases.judged("llama", "packed", "rho"), selected=True)


def test_a_sampled_teacher_with_cross_entropy(tmp_path):
    """The gradient is that of the shares of the draws, whatever the rest of the step."""
    terms = [term(ForwardKL(), 0.7), term(CrossEntropy(), 0.3)]
    teacher = loaded(tmp_path, kind="sampled", draws=9)
    found = engine.step(cases.model(), ROWS["single"], terms, teacher=teacher, micro_batch=3)
    again = loaded(tmp_path, kind="sampled", draws=9)
    other = engine.step(cases.model(), ROWS["single"], terms, teacher=again, micro_batch=8)
    assert found.terms == pytest.approx(other.terms, rel=1e-12)
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, other.gradients[name], rtol=1e-10, atol=1e-12)


# Recipes

RECIPE = """\
[student]
model = "s"
[data]
use = "stories"
[[loss]]
use = "kl"
[teacher]
use = "cached"
teacher = {use = "hf", model = "t"}
[train]
lr = 1e-3
steps = 1
"""
SAMPLED = RECIPE + '[[eval]]\nuse = "agreement"\n'


@pytest.fixture(scope="module")
def host():
    return PluginManager()


def faults(folder, host, text, *sets):
    (folder / "r.toml").write_text(text)
    try:
        read_recipe(str(folder / "r.toml"), host, sets=sets)
    except RecipeError as error:
        return [fault.message for fault in error.errors]
    return []


def test_what_each_kind_is_good_for(tmp_path, host):
    assert faults(tmp_path, host, RECIPE, 'teacher.kind="topk"') == []
    assert faults(tmp_path, host, SAMPLED, 'teacher.kind="topk"') == []
    assert faults(tmp_path, host, RECIPE, 'teacher.kind="sampled"') == []
    entropy = 'selection={use="entropy", of="teacher", keep=0.5}'
    assert faults(tmp_path, host, RECIPE, 'teacher.kind="topk"', entropy) == []
    (only,) = faults(tmp_path, host, RECIPE)
    assert only == "the loss 'kl' needs logits, and the teacher 'cached' gives no logits"


@pytest.mark.parametrize(
    "sets, who",
    [
        (("loss.1.use=jsd",), ["jsd"]),
        (("loss.1.temperature=2.0",), ["kl"]),
        (('selection={use="entropy", of="teacher", keep=0.5}',), ["entropy"]),
    ],
)
def test_who_would_go_wrong_by_an_estimate(tmp_path, host, sets, who):
    found = faults(tmp_path, host, SAMPLED, 'teacher.kind="sampled"', *sets)
    said = "{!r} needs the teacher's distribution, and 'cached' gives an estimate"
    assert sorted(found) == sorted(said.format(name) for name in [*who, "agreement"])


def test_what_cannot_be_wrapped(tmp_path, host):
    inner = 'teacher={use="cached", kind="KIND", teacher={use="hf", model="t"}}'
    top = 'teacher.teacher={use="cached", kind="topk", teacher={use="hf", model="t"}}'
    (found,) = faults(tmp_path, host, RECIPE, 'teacher.kind="sampled"', top)
    assert found == "kind = \"sampled\" needs the logits of all ids, and 'cached' has them not"
    members = inner.replace("KIND", "topk")
    ensemble = 'teacher={use="ensemble", members=[' + members.removeprefix("teacher=") + "]}"
    (found,) = faults(tmp_path, host, RECIPE, ensemble)
    assert found.startswith("the member 'cached' knows 32 ids of each position, and an average")
    rho = "selection={use='rho', keep=0.5, reference=" + members.removeprefix("teacher=") + "}"
    (found,) = faults(tmp_path, host, RECIPE, "loss.1.use=ce", "teacher=", rho)
    assert found == "the reference 'cached' does not know the loss of every token"


def test_rows_that_are_fresh_each_epoch(tmp_path, host):
    fresh = (
        'data={use="babylm", path="p", rows="chunk", random_offset=true}',
        'teacher.kind="topk"',
    )
    (found,) = faults(tmp_path, host, RECIPE, *fresh)
    assert found.startswith("data 'babylm' makes new rows each epoch, which stored answers do")
    assert 'context = "document"' in found
    assert faults(tmp_path, host, RECIPE, *fresh, 'teacher.context="document"') == []


def test_options_of_another_kind_are_errors(tmp_path, host):
    (found,) = faults(tmp_path, host, RECIPE, "teacher.k=4")
    assert found == 'k is an option of kind = "topk", not of "nll"'


class Changes(ForwardKL):
    name = "changes"

    def temperatures(self):
        return []


def test_temperatures_that_a_teacher_of_some_ids_cannot_serve(tmp_path, host, monkeypatch):
    assert faults(tmp_path, host, RECIPE, 'teacher.kind="topk"', "loss.1.temperature=3.0") == []
    monkeypatch.setattr(ForwardKL, "temperatures", Changes.temperatures)
    (found,) = faults(tmp_path, host, RECIPE, 'teacher.kind="topk"')
    assert found.startswith("the loss 'kl' changes its temperature, or has several, and")
    live = 'teacher={use="hf", model="t"}'
    assert faults(tmp_path, host, RECIPE, live) == []
    monkeypatch.undo()
    monkeypatch.setattr(CachedTeacher, "knows_others_at", lambda self, at: at == 1)
    (found,) = faults(tmp_path, host, RECIPE, 'teacher.kind="topk"', "loss.1.temperature=3.0")
    assert found.startswith("the loss 'kl' is at temperature 3, and the teacher 'cached' cannot")
