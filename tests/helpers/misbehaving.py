"""A plugin whose components misbehave on demand: `spot` names the method, `how` what it does.

Everything else about them is in order, so that a run without `how` ends well.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore import (
    Batch,
    Data,
    Eval,
    Logger,
    Loss,
    Patch,
    Selection,
    Teacher,
    Tokenizer,
    component,
    hookimpl,
    load_tokenizer,
)

TEXTS = ["Once upon a time there was a fox.", "She had a red kite.", "The end of it."] * 4


def spoiled(self, method, result, *inputs):
    """The result of a method, or what it was asked to do in its place."""
    return done(self.how, result, *inputs) if self.spot == method else result


def done(how, result=None, *inputs):
    if how == "raises":
        raise ZeroDivisionError("on purpose")
    if how == "exits":
        raise SystemExit(5)
    if how == "type":
        return 7
    if how == "none":
        return None
    if how == "shape":
        return result[:-1] if isinstance(result, Tensor) else [result]
    if how == "writes":
        for each in inputs:
            _write(each)
    if how == "prints":
        print("NOISE")
    return result


def _write(value):
    if isinstance(value, Tensor):
        with torch.no_grad():
            value.detach().fill_(0)
    elif isinstance(value, Batch):
        value.input_ids.fill_(0)
        value.labels.fill_(0)
    elif isinstance(value, Mapping):
        value.clear()


@component
class Texts(Data):
    name = "bad"
    spot: str = ""
    how: str = ""
    block: int = 16

    def texts(self, split):
        texts = spoiled(self, "texts", TEXTS)
        return [7] if self.spot == "texts" and self.how == "shape" else texts

    def make_rows(self, split, tokenizer, *, seed, epoch):
        rows = super().make_rows(split, tokenizer, seed=seed, epoch=epoch)
        return spoiled(self, "make_rows", rows)

    def fingerprint(self):
        return spoiled(self, "fingerprint", "bad")

    def faults(self, recipe):
        return spoiled(self, "faults", ())

    def missing(self):
        return spoiled(self, "missing", ())

    def names_on_hub(self):
        return spoiled(self, "names_on_hub", [])


@component
class Ids(Tokenizer):
    name = "bad"
    spot: str = ""
    how: str = ""

    def load(self, run, data):
        return spoiled(self, "load", load_tokenizer("model"))


@component
class Knows(Teacher):
    name = "bad"
    spot: str = ""
    how: str = ""

    def load(self, run):
        spoiled(self, "load", None)

    def tokenizer(self):
        return spoiled(self, "tokenizer", None)

    def architecture(self, device):
        return spoiled(self, "architecture", None)

    def gives_logits(self):
        return spoiled(self, "gives_logits", True)

    def ids_known(self):
        return spoiled(self, "ids_known", None)

    def fingerprint(self):
        return spoiled(self, "fingerprint", "bad")

    def read(self, batch):
        def at(positions):
            return spoiled(self, "at", torch.zeros(len(positions), batch.vocabulary), positions)

        return spoiled(self, "read", at, batch)

    def nll(self, batch):
        def at(positions, labels):
            return spoiled(self, "nll_at", torch.zeros(len(positions)), positions, labels)

        return spoiled(self, "nll", at, batch)


@component
class Far(Loss):
    name = "bad"
    spot: str = ""
    how: str = ""

    def per_token(self, student, teacher, labels):
        values = F.cross_entropy(student, labels, reduction="none")
        return spoiled(self, "per_token", values, student, teacher, labels)

    def formula(self):
        return spoiled(self, "formula", "F(q, y)")

    def linear_in_teacher(self):
        return spoiled(self, "linear_in_teacher", False)


@component
class Some(Selection):
    name = "bad"
    spot: str = ""
    how: str = ""

    def needs_teacher(self):
        return spoiled(self, "needs_teacher", True)

    def keep(self, tokens):
        scores, labels = tokens.student_nll() + tokens.nll(), tokens.labels
        return spoiled(self, "keep", scores > 0, scores, labels, tokens.row, tokens.position)


@component
class Change(Patch):
    name = "bad"
    spot: str = ""
    how: str = ""

    def apply(self, model):
        return spoiled(self, "apply", model)

    def finish(self, model):
        return spoiled(self, "finish", model)


@component
class Measure(Eval):
    name = "bad"
    spot: str = ""
    how: str = ""

    def measure(self, run):
        if (self.spot, self.how) == ("measure", "shape"):
            return {"bad": [1.0]}
        return spoiled(self, "measure", {"bad": 1.0})


class Hears:
    """Every event, under the hook's name."""

    @hookimpl
    def kdcore_run_start(self, run):
        spoiled(self, "kdcore_run_start", None)

    @hookimpl
    def kdcore_step_start(self, run, step):
        spoiled(self, "kdcore_step_start", None)

    @hookimpl
    def kdcore_log(self, run, record):
        spoiled(self, "kdcore_log", None, record.terms, record.selection)

    @hookimpl
    def kdcore_scores(self, run, step, scores):
        spoiled(self, "kdcore_scores", None, scores)

    @hookimpl
    def kdcore_checkpoint(self, run, step, path):
        spoiled(self, "kdcore_checkpoint", None)

    @hookimpl
    def kdcore_run_end(self, run, error):
        spoiled(self, "kdcore_run_end", None)


@component
class Tells(Hears, Logger):
    name = "bad"
    spot: str = ""
    how: str = ""


@component
class Listens(Hears, Eval):
    name = "listens"
    spot: str = ""
    how: str = ""

    def measure(self, run):
        return {"listens": 1.0}


@hookimpl
def kdcore_data():
    return [Texts]


@hookimpl
def kdcore_tokenizers():
    return [Ids]


@hookimpl
def kdcore_teachers():
    return [Knows]


@hookimpl
def kdcore_losses():
    return [Far]


@hookimpl
def kdcore_selections():
    return [Some]


@hookimpl
def kdcore_patches():
    return [Change]


@hookimpl
def kdcore_evals():
    return [Measure, Listens]


@hookimpl
def kdcore_loggers():
    return [Tells]
