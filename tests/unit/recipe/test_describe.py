"""The formula that `kdcore plan` prints is what the engine computes: both, on the same numbers."""

import re
from types import SimpleNamespace

import pytest
import torch

from kdcore import HiddenStatesLoss, PreparedLoss, SparseLogits, Teacher
from kdcore.api.loss import Term
from kdcore.api.schedule import Schedule
from kdcore.cli.main import plugin_manager
from kdcore.objective.losses import values_of
from kdcore.objective.objective import Objective, TokenMask
from kdcore.recipe.describe import objective_formula, symbols_of
from kdcore.recipe.files import shipped_recipes
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow

VOCABULARY, TOKENS, WIDTH = 11, 40, 5
DONE = (0.0, 0.25, 0.5, 0.8, 1.0)


# ---- the vocabulary of formulas, as docs/losses.md describes it ---------------------------------


def KL(a, b):
    return (a * (a.log() - b.log())).sum(-1)


def CE(q, y):
    return -q.gather(-1, y[:, None])[:, 0].log()


def TV(a, b):
    return (a - b).abs().sum(-1) / 2


def evaluated(formula, step, done, **names):
    """The right side of a formula by Python's own rules, on whole tensors in float64."""
    keep = step.keep

    def mean(mask):
        return lambda values: values[mask].sum() / max(1, int(mask.sum()))

    known = {
        "p": lambda temperature: (step.teacher / temperature).softmax(-1),
        "q": lambda temperature: (step.student / temperature).softmax(-1),
        "y": step.labels,
        "KL": KL,
        "CE": CE,
        "TV": TV,
        "min": min,
        "done": done,
        "mean_all": mean(torch.ones_like(keep)),
        "mean_kept": mean(keep),
        "mean_dropped": mean(~keep),
    }
    known |= names
    right = formula.removeprefix("loss = ")
    return float(eval(f"({right})", {"__builtins__": {}}, known))


# ---- the engine on the same numbers --------------------------------------------------------------


def a_step(seed=0):
    """Everything that a step is made of, in float64."""
    made = torch.Generator().manual_seed(seed)
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=made)
    labels[torch.rand(TOKENS, generator=made) < 0.2] = -100
    valid = (labels != -100).nonzero()[:, 0]
    states = torch.randn(TOKENS, WIDTH, generator=made, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=made, dtype=torch.float64)
    teacher = 3 * torch.randn(TOKENS, VOCABULARY, generator=made, dtype=torch.float64)
    return SimpleNamespace(
        all_labels=labels,
        valid=valid,
        states=states,
        weight=weight,
        all_teacher=teacher,
        labels=labels[valid],
        all_student=states @ weight.t(),
        student=(states @ weight.t())[valid],
        teacher=teacher[valid],
        keep=torch.rand(len(valid), generator=made) < 0.4,
    )


def engines_loss(terms, step, done, selects):
    """One micro-batch through the objective, in chunks of seven tokens."""
    states = step.states.clone().requires_grad_()
    student = SimpleNamespace(
        bend=None,
        model=torch.nn.Identity(),
        states=lambda batch: states,
        weight=torch.nn.Parameter(step.weight),
        bias=None,
        computed_weight=lambda: step.weight,
    )
    batch = SimpleNamespace(labels=step.all_labels, valid=step.valid, vocabulary=VOCABULARY)
    count = torch.tensor(float(len(step.valid)), dtype=torch.float64)
    kept = step.keep.sum() if selects else count
    seen = TokenMask(step.keep if selects else None, valid=count, ranked=count, kept=kept)
    weighted = [(term, term.weight_at(done)) for term in terms if term.weight_at(done)]
    if not weighted:
        return 0.0
    values = values_of([term.loss for term, _ in weighted])
    objective = Objective(student, chunk=7)
    needed = any(term.loss.needs_teacher for term, _ in weighted)
    teacher = (lambda positions: at(step.all_teacher, positions)) if needed else None
    loss, _ = objective(batch, weighted, values, teacher, lambda states: seen)
    return float(loss.detach())


def at(teacher, positions):
    if isinstance(teacher, SparseLogits):
        return SparseLogits(*(part[positions] for part in teacher[:2]))
    return teacher[positions]


def agrees(terms, selects):
    formula = objective_formula(terms, selects=selects)
    for done in DONE:
        for seed in range(3):
            step = a_step(seed)
            found = evaluated(formula, step, done)
            assert found == pytest.approx(engines_loss(terms, step, done, selects), rel=1e-6), (
                formula,
                done,
            )


# ---- tests ---------------------------------------------------------------------------------------

HOST = plugin_manager([])


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_the_formula_of_every_shipped_recipe_is_the_engines_loss(path):
    recipe = read_recipe(str(path), HOST)
    for stage in recipe.stages:
        built = recipe.build(stage.name)
        # What depends on whole answers, documents or states, no formula of one token tells.
        others = (PreparedLoss, HiddenStatesLoss)
        if not any(isinstance(term.loss, others) or term.where for term in built.terms):
            agrees(built.terms, built.selection is not None)


def term(use, weight=1.0, on="kept", **options):
    loss = HOST.provided("loss")[use].cls(**options)
    return Term(label=use, use=use, loss=loss, weight=weight, on=on)


@pytest.mark.parametrize("on", ["kept", "all", "dropped"])
def test_terms_see_their_own_tokens(on):
    agrees([term("ce", 0.3, on), term("kl", 0.7, "kept", temperature=2.0)], selects=True)


@pytest.mark.parametrize(
    "use, options",
    [
        ("reverse-kl", {"temperature": 1.7}),
        ("skew-kl", {"skew": 0.3}),
        ("skew-reverse-kl", {"temperature": 3.0, "scale_by_t2": False}),
        ("jsd", {"beta": 0.2, "normalise": True}),
        ("tvd", {"temperature": 2.0}),
        ("symmetric-kl", {"forward": 0.25}),
    ],
)
def test_every_digit_of_weights_and_options_is_written(use, options):
    agrees([term(use, 1 / 3, **options), term("ce", -2 / 7)], selects=False)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(start=1.0, end=0.0, until=0.5),
        Schedule(start=0.0, end=1 / 3),
        Schedule(start=0.25, end=-0.5, until=0.8),
    ],
)
def test_schedules_are_written_out(schedule):
    agrees([term("ce", schedule), term("kl", 0.5)], selects=False)


def test_a_formula_as_it_is_printed():
    terms = [
        term("ce", Schedule(start=1.0, end=0.0, until=0.5)),
        term("kl", 0.5, on="all", temperature=2.0),
    ]
    assert objective_formula(terms, selects=True) == (
        "loss = (1 + (0 - 1) * min(done / 0.5, 1)) * mean_kept(CE(q(1), y))\n"
        "     + 0.5 * mean_all(4 * KL(p(2), q(2)))"
    )
    assert "mean_kept" not in objective_formula(terms, selects=False)


def test_every_symbol_is_explained_in_order_and_once():
    terms = [term("ce", Schedule(start=1.0, end=0.0)), term("kl", 0.5), term("adaptive-kl")]
    found = symbols_of(terms, selects=False)
    names = [re.split(r"\W", symbol)[0] for symbol, _ in found]
    assert names == ["done", "mean_all", "CE", "q", "y", "KL", "p", "AKL"]
    assert all(words for _, words in found)


def test_a_function_of_one_loss_is_explained_by_its_docstring():
    [(_, words)] = [pair for pair in symbols_of([term("adaptive-kl")], selects=False)][-3:-2]
    assert words.startswith("of the loss 'adaptive-kl': ")


def test_a_formula_that_is_no_python_is_printed_without_explanations():
    loss = SimpleNamespace(formula=lambda: "E[log p - log q] !")
    strange = Term(label="x", use="x", loss=loss, weight=1.0, on="kept")
    assert objective_formula([strange], selects=False) == "loss = 1 * mean_all(E[log p - log q] !)"
    assert symbols_of([strange], selects=False) == []


class KnowsThree(Teacher):
    """Of three ids at each position, and of all others together."""

    name = "three"

    def ids_known(self):
        return 3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_a_teacher_of_some_ids_is_compared_with(temperature):
    """`p_3(T)` and `q_3(T)` are tempered after they are coarsened; `q(1)` is over all ids."""
    terms = [term("kl", 0.7, temperature=temperature), term("ce", 0.3)]
    formula = objective_formula(terms, selects=False, teacher=KnowsThree())
    assert f"KL(p_3({temperature:g}), q_3({temperature:g}))" in formula and "CE(q(1), y)" in formula
    step = a_step()
    ids = step.all_teacher.topk(3).indices
    masses = [coarse_masses(logits, ids) for logits in (step.all_teacher, step.all_student)]

    def tempered(of_all):
        return lambda temperature: (of_all[step.valid].log() / temperature).softmax(-1)

    names = {"p_3": tempered(masses[0]), "q_3": tempered(masses[1])}
    step.all_teacher = SparseLogits(ids, masses[0].log())
    exact = engines_loss(terms, step, 0.0, False)
    assert evaluated(formula, step, 0.0, **names) == pytest.approx(exact, rel=1e-6)


def coarse_masses(logits, ids):
    p = logits.softmax(-1)
    others = p.masked_fill(torch.zeros_like(p, dtype=bool).scatter(1, ids, True), 0)
    return torch.cat([p.gather(1, ids), others.sum(-1, keepdim=True)], -1)


def test_the_symbols_of_a_teacher_of_some_ids():
    found = dict(symbols_of([term("kl"), term("ce")], selects=False, teacher=KnowsThree()))
    assert list(found) == ["mean_all", "KL(a, b)", "p_3(T)", "q_3(T)", "CE(q, y)", "q(T)", "y"]
    assert "3 likeliest ids and all others as one" in found["p_3(T)"]
    warm = symbols_of([term("kl", temperature=2.0)], selects=False, teacher=KnowsThree())
    assert dict(warm)["p_3(T)"].endswith("all others as one, then softmax(log / T)")
