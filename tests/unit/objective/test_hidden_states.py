"""Losses between hidden states in the engine, against `oracle` in float64."""

import engine
import given
import oracle
import pytest
import tiny
import torch
import training
from adapted import adapted
from cases import ROWS, SHARE, assert_equal, model, selections
from engine import Held, term
from given import VOCABULARY
from kdcore_losses import CrossEntropy, ForwardKL, HiddenCosine, HiddenMse

from kdcore import HiddenStatesLoss, PluginError, RunError, UsageError, component
from kdcore.api.schedule import Schedule
from kdcore.api.train_options import TrainOptions
from kdcore.training.setup import enable_checkpointing, optimizer_of

pytestmark = pytest.mark.slow

PAIRS = [[0, 1], [1, 0], [-1, -1]]


def wide(kind="llama"):
    """A teacher whose states are wider than the student's."""
    size = {"n_embd": 24} if kind == "gpt2" else {"hidden_size": 24}
    return given.model(kind, seed=1, double=True, **size)


def compared(student, rows, terms, teacher, *, scores=None, **options):
    """What the engine gives equals the oracle's answer, with every gradient."""
    found = engine.step(student, rows, terms, teacher=Held(teacher), **options)
    expected = oracle.step(
        student,
        rows,
        terms,
        vocabulary=VOCABULARY,
        teacher=oracle.model_teacher(teacher, VOCABULARY),
        shown=teacher,
        scores=scores,
        share=SHARE,
        done=(options.get("at", 1) - 1) / options.get("steps", 1),
    )
    assert found.gradients.keys() >= expected.gradients.keys()
    assert_equal(found, expected)
    return found


def mixed(**options):
    return [
        term(HiddenMse(layers=PAIRS, **options), 0.7),
        term(ForwardKL(temperature=2.0), 0.5),
        term(HiddenCosine(layers=[[-2, 2]], **options)),
    ]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_states_of_every_architecture(kind, rows):
    for micro_batch in (1, 3, 8):
        student, teacher = model(kind), model(kind, seed=1)
        compared(student, ROWS[rows], mixed(), teacher, micro_batch=micro_batch)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_projection_learns(kind):
    terms = mixed(projection="linear")
    found = compared(model("llama"), ROWS["packed"], terms, wide(kind), micro_batch=3)
    learned = [name for name in found.gradients if name.startswith("learned.")]
    assert len(learned) == 4
    assert all(found.gradients[name].abs().max() > 0 for name in learned)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_student_with_adapters(kind):
    student = adapted(given.model(kind, double=True))
    compared(student, ROWS["packed"], mixed(projection="linear"), wide(), micro_batch=3)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_gradient_checkpointing(kind):
    student = given.model(kind, double=True)
    enable_checkpointing(student)
    compared(student, ROWS["packed"], mixed(projection="linear"), wide(), micro_batch=3)


def test_tokens_that_a_selection_leaves():
    terms = [
        term(HiddenMse(layers=[[1, 2]])),
        term(HiddenMse(layers=[[0, 0]]), 0.3, on="dropped", label="dropped"),
        term(CrossEntropy(), on="all"),
    ]
    selection, scores = selections()["hardest"]
    options = {"selection": selection, "scores": scores}
    for micro_batch in (3, 8):
        compared(model(), ROWS["packed"], terms, model(seed=1), micro_batch=micro_batch, **options)


def test_documents_that_match():
    terms = [
        term(HiddenMse(), where={"domain": "math"}),
        term(HiddenCosine(), where={"domain": "law"}),
        term(CrossEntropy(), 0.5),
    ]
    compared(model(), given.rows_with_columns(), terms, model(seed=1), micro_batch=3)


def test_no_term_compares_logits():
    """What no term reaches has a gradient of 0 all the same: processes wait for it."""
    found = compared(model(), ROWS["packed"], [term(HiddenMse(layers=[[1, 1]]))], model(seed=1))
    assert not found.gradients["lm_head.weight"].any()
    assert not found.gradients["model.layers.1.mlp.up_proj.weight"].any()
    assert found.gradients["model.layers.0.mlp.up_proj.weight"].any()


def test_a_student_whose_head_is_no_plain_matrix():
    """Its states are its logits; its hidden states are those of its trunk."""

    class Head(torch.nn.Linear):
        pass

    student = given.model(double=True)
    student.lm_head = Head(16, VOCABULARY, bias=False, dtype=torch.float64)
    assert given.proved(student).weight is None
    compared(student, ROWS["packed"], mixed(projection="linear"), wide(), micro_batch=3)


def test_a_term_whose_weight_is_0():
    until = Schedule(start=1.0, end=0.0, until=0.5)
    terms = [term(HiddenMse(layers=PAIRS, projection="linear"), until), term(CrossEntropy())]
    options = {"steps": 10, "micro_batch": 3}
    compared(model(), ROWS["packed"], terms, wide(), at=3, **options)
    found = compared(model(), ROWS["packed"], terms, wide(), at=9, **options)
    assert found.gradients["learned.0.0.weight"] is not None
    assert not found.gradients["learned.0.0.weight"].any()


def test_the_teacher_is_read_once():
    teacher = Held(model(seed=1))
    engine.step(
        model(), ROWS["packed"], mixed(), teacher=teacher, micro_batch=3, selection=OF_TEACHER
    )
    assert teacher.reads == 3


OF_TEACHER = engine.Keeps(lambda tokens: tokens.top(tokens.nll(), 0.5))


def test_only_the_chosen_layers_are_kept():
    lm = given.proved(given.model(seed=5))
    lm.watch_layers([1, -1])
    hooked = [n for n, each in enumerate(lm.model.model.layers) if each._forward_pre_hooks]
    assert hooked == [1]
    assert not any(each._forward_hooks for each in lm.model.model.layers)
    with lm._hidden.keeping([1, 2]):
        lm.model.model(input_ids=torch.zeros(1, 4, dtype=torch.int64))
        assert sorted(lm._hidden._kept) == [1, 2]
    assert lm._hidden._kept is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers(checkpointing):
    """The same states and gradients where layers are compiled, also without a pass that keeps."""
    plain, fast = (given.model(seed=6).train() for _ in range(2))
    models = [given.LanguageModel(each) for each in (plain, fast)]
    for each in models:
        each.watch_layers([0, 1, -1])
        if checkpointing:
            enable_checkpointing(each.model)
    models[1].compile_layers(backend="eager")
    batch = tiny.batch(tiny.documents([9, 7], VOCABULARY), [[(0, 0, 9)], [(1, 0, 7)]], VOCABULARY)
    for _ in range(2):
        found = []
        for each in models:
            each.model.zero_grad()
            states, kept = each.layer_states(batch, [-1, 1, 0])
            (states.square().sum() + sum((n + 1) * k.sum() for n, k in enumerate(kept))).backward()
            grads = [p.grad for p in each.model.model.parameters()]
            found.append([states, *kept, each.states(batch), *grads])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            [[3, 1]],
            r"the student has 2 layers, and no hidden state 3: they are 0 \(the embeddings\) to 2",
        ),
        ([[1, -4]], r"the teacher 'held' has 2 layers, and no hidden state -4: .* or -1 to -3"),
    ],
)
def test_layers_out_of_range(layers, said):
    with pytest.raises(RunError, match=said):
        engine.step(
            model(), ROWS["packed"], [term(HiddenMse(layers=layers))], teacher=Held(model(seed=1))
        )


def test_states_of_other_widths():
    said = 'state 1 has 16 numbers and the teacher\'s state 2 has 24; projection = "linear" learns'
    with pytest.raises(UsageError, match=said):
        terms = [term(HiddenMse(layers=[[1, 2]]))]
        engine.step(model(), ROWS["packed"], terms, teacher=Held(wide()))


@component
class Wrong(HiddenStatesLoss):
    name = "wrong"
    how: str = "sum"

    def per_token_states(self, student, teacher):
        if self.how == "writes":
            teacher[0].mul_(2)
        if self.how == "detached":
            return student[0].detach().sum(-1)
        return student[0].sum()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("sum", "expected one value for each of"),
        ("writes", "wrote into the tensors"),
        ("detached", "without a gradient"),
    ],
)
def test_what_a_loss_gives_is_checked(how, said):
    with pytest.raises(PluginError, match=said):
        engine.step(model(), ROWS["packed"], [term(Wrong(how=how))], teacher=Held(model(seed=1)))


def test_neither_a_score_nor_an_eval():
    score = engine.Keeps(lambda tokens: tokens.score(HiddenMse()) > 0)
    with pytest.raises(UsageError, match="compares hidden states, so it can only be a"):
        engine.step(model(), ROWS["packed"], [term()], teacher=Held(model(seed=1)), selection=score)


def test_a_projection_is_drawn_from_the_seed():
    drawn = []
    for seed in (0, 0, 1):
        loss = HiddenMse(projection="linear")
        loss.set_sizes([16], [24], seed)
        drawn.append(loss.learned()[0].weight)
    assert drawn[0].shape == (24, 16) and drawn[0].abs().max() <= 1 / 4
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_is_learned_is_clipped_by_itself():
    terms = [term(HiddenMse(layers=PAIRS, projection="linear")), term(CrossEntropy())]
    options = {"teacher": Held(wide()), "batch": 8, "clip": 1e-3}
    made = engine.trainer(given.model(double=True), ROWS["packed"], terms, **options)
    made.step(1)
    student = [p for p in made.objective.model.parameters()]
    learned = [p for p in made.objective.learned.parameters()]
    assert len(made.optimizer.seen) == len(student) + len(learned) and learned
    norms = [
        torch.nn.utils.get_total_norm(some)
        for some in (made.optimizer.seen[: len(student)], made.optimizer.seen[len(student) :])
    ]
    for norm in norms:
        torch.testing.assert_close(norm, torch.tensor(1e-3, dtype=norm.dtype), rtol=1e-3, atol=0)


def test_what_is_learned_has_no_weight_decay():
    loss = HiddenMse(projection="linear")
    loss.set_sizes([16], [24], 0)
    student = given.model()
    options = TrainOptions(steps=1, batch=1, lr=0.1, weight_decay=0.5)
    made = optimizer_of(options, student, loss.learned())
    assert [group["weight_decay"] for group in made.param_groups] == [0.5, 0.0, 0.0]
    assert [p.shape for p in made.param_groups[-1]["params"]] == [(24, 16)]


def test_shares_of_the_gradient_are_those_of_terms_that_compare_logits(tmp_path):
    terms = [term(HiddenMse()), term(CrossEntropy()), term(ForwardKL())]
    made = training.trainer(tmp_path, terms=terms, steps=2)
    made.train()
    record = training.records(made)[0]
    assert record.gradient.keys() == {"ce", "kl"}
    assert record.terms.keys() == {"hidden-mse", "ce", "kl"}
