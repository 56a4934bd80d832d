"""`kdcore.testing.check` passes what keeps the contract of its kind, and says what does not."""

import pytest
import torch

from kdcore import Data, Eval, Logger, Loss, Patch, PreparedLoss, Teacher, Tokenizer, component
from kdcore import hookimpl as hook
from kdcore.testing import check, tiny_run, tiny_tokenizer
from kdcore.testing.tiny import TinyBytes, TinyEval, TinyNll, TinySums, TinyTable


@component
class Forgetful(Data):
    name = "forgetful"

    def __post_init__(self):
        self._asked = 0

    def texts(self, split):
        self._asked += 1
        return [f"text {self._asked}"]


@component
class OneText(Data):
    name = "one-text"

    def texts(self, split):
        return "a text"


@component
class Shifted(Data):
    name = "shifted"

    def make_rows(self, split, tokenizer, *, seed, epoch):
        return [{"input_ids": [1, 2, 3], "labels": [2, 3, -100]}]


@component
class Wide(Data):
    name = "wide"
    block: int = 2

    def make_rows(self, split, tokenizer, *, seed, epoch):
        return [{"input_ids": [1, 2, 3]}]


@component
class Endless(Tokenizer):
    name = "endless"

    def load(self, run, data):
        made = tiny_tokenizer()
        made.eos_token = None
        return made


@component
class Breaking(Patch):
    name = "breaking"

    def apply(self, model):
        return model

    def finish(self, model):
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        return model


@component
class Frozen(Patch):
    name = "frozen"

    def apply(self, model):
        return model.requires_grad_(False)


@component
class Drawing(Eval):
    name = "drawing"

    def measure(self, run):
        return {"drawn": torch.rand(()).item()}


@component
class Nothing(Eval):
    name = "nothing"

    def measure(self, run):
        return {"nothing": None}


@component
class Raising(Logger):
    name = "raising"

    @hook
    def kdcore_log(self, run, record):
        raise ValueError("no such column")


@component
class Ignorant(Teacher):
    name = "ignorant"

    def read(self, batch):
        return lambda positions: torch.full((len(positions), batch.vocabulary), torch.nan)


@component
class Wavering(PreparedLoss):
    name = "wavering"

    def prepare(self, tokens):
        return torch.rand(len(tokens.labels))


@component
class Negative(Loss):
    name = "negative"

    def per_token(self, student, teacher, labels):
        return -student.square().sum(-1)


@component
class Half(Loss):
    name = "half"

    def per_token(self, student, teacher, labels):
        return student.sum(-1).half()


@component
class Losing(TinyNll):
    name = "losing"

    def state_dict(self):
        return {} if getattr(self, "_taken", False) else {"count": 1}

    def load_state_dict(self, state):
        self._taken = True


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Forgetful(), "other documents of 'train'"),
        (OneText(), "gives one text"),
        (Shifted(), "labels that are neither -100 nor the id itself"),
        (Wide(), "a row of 3 ids, and block is 2"),
        (Breaking(), "changes the model's logits in `finish`"),
        (Frozen(), "no parameter that can be trained"),
        (Wavering(), "prepares something else"),
        (Half(), "returned torch.float16"),
        (Losing(), "has another state"),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_what_breaks_the_contract_is_reported(made, said):
    with pytest.raises(AssertionError, match=f"{made.name}: .*{said}"):
        check(made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Endless(), "no token that ends a text"),
        (Drawing(), "global random state"),
        (Nothing(), "neither a number nor a text"),
        (Raising(), "raised in kdcore_log: ValueError: no such column"),
        (Ignorant(), "not finite"),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_what_breaks_the_contract_in_a_run_is_reported(made, said):
    with pytest.raises(AssertionError, match=f"{made.name}: .*{said}"):
        check(made)


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [TinySums(), TinyBytes(), TinyTable(), TinyNll(), TinyEval(), Negative()],
    ids=lambda each: each.name,
)
def test_what_keeps_the_contract_passes(made):
    check(made)


@pytest.mark.slow
def test_a_tiny_run_is_opened_with_its_teacher():
    with tiny_run() as run:
        assert (run.step, run.vocabulary, run.reads_teacher) == (2, 257, True)
        folder = run.folder
    assert not folder.exists()
