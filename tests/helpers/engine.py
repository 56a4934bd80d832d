"""The engine as tests drive it: the real trainer on tiny models, with rows made by hand."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from given import VOCABULARY, proved
from kdcore_losses import CrossEntropy

from kdcore import PreparedLoss as PreparedLoss
from kdcore import Selection, Teacher
from kdcore.api.loss import Term
from kdcore.api.train_options import TrainOptions
from kdcore.data.given import as_rows
from kdcore.data.sampler import Order, TrainingRows
from kdcore.objective.hidden_states import HiddenTerms
from kdcore.objective.losses import values_of
from kdcore.objective.objective import Objective
from kdcore.sharding.layout import Layout
from kdcore.training.checkpoints.saving import Checkpoints
from kdcore.training.run_state import RunState
from kdcore.training.trainer import Trainer


def term(loss=None, weight=1.0, on="kept", label=None, where=None):
    loss = loss or CrossEntropy()
    label = label or loss.name
    return Term(label=label, use=loss.name, loss=loss, weight=weight, on=on, where=where)


class Held(Teacher):
    """A teacher that is given its model, and does not even put it into evaluation mode."""

    name = "held"

    def __init__(self, model):
        self.model = proved(model)
        self.reads = 0

    def read(self, batch):
        self.reads += 1
        states = self.model.states(batch)
        return lambda positions: self.model.logits(states[positions])

    def layer_sizes(self):
        self.model.watch_layers(())
        return self.model.layer_sizes

    def read_states(self, batch, layers):
        self.reads += 1
        states, kept = self.model.layer_states(batch, layers)
        return (
            lambda positions: self.model.logits(states[positions]),
            lambda positions: [each[positions] for each in kept],
        )


class Keeps(Selection):
    """A selection made of a function."""

    name = "keeps"

    def __init__(self, keep):
        self.function = keep

    def keep(self, tokens):
        return self.function(tokens)


class Watched(Selection):
    """A selection that is looked at: which places of the step it kept."""

    name = "watched"

    def __init__(self, selection):
        self.selection, self.kept = selection, set()

    def keep(self, tokens):
        keep = self.selection.keep(tokens)
        places = torch.stack([tokens.row, tokens.position], dim=1)[keep > 0]
        self.kept |= {tuple(place) for place in places.tolist()}
        return keep


class InOrder(Order):
    """The rows as they come."""

    def step(self, step):
        places = range((step - 1) * self.batch, step * self.batch)
        return [divmod(n, self.rows) for n in places]


class Noting(torch.optim.SGD):
    """Notes each step's gradients, and leaves the weights alone."""

    def step(self, closure=None):
        self.seen = [
            None if p.grad is None else p.grad.clone()
            for group in self.param_groups
            for p in group["params"]
        ]


class Events:
    """In the host's place: what was emitted, in order."""

    def __init__(self):
        self.seen = []

    def emit(self, hook, **arguments):
        self.seen.append((hook, arguments))

    def of(self, hook):
        return [arguments for name, arguments in self.seen if name == hook]


@dataclass
class Alone:
    """In the accelerator's place: one process, float32."""

    num_processes = 1
    process_index = 0
    is_main_process = True
    scaler = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def no_sync(self, model):
        return nullcontext()

    def reduce(self, tensor, how):
        return tensor

    def wait_for_everyone(self):
        pass

    def prepare(self, *objects):
        return objects[0] if len(objects) == 1 else objects


def trainer(
    student,
    rows,
    terms,
    *,
    teacher=None,
    selection=None,
    scope="step",
    micro_batch=8,
    batch=8,
    vocabulary=VOCABULARY,
    chunk=11,
    steps=1,
    seed=0,
    folder=Path("."),
    accelerator=None,
    optimizer=None,
    order=InOrder,
    evals=(),
    signals=None,
    values=None,
    rate=lambda step: 0.1,
    **options,
):
    """A trainer of these parts, all others as in a run."""
    accelerator = accelerator or Alone()
    data = SimpleNamespace(
        name="given",
        bos="auto",
        fresh_each_epoch=False,
        make_rows=lambda *_, **__: rows,
        block=16,
    )
    options = {"lr": 0.1, "clip": 0.0, "eval_first": False} | options
    stage = SimpleNamespace(
        run_name="test",
        seed=seed,
        data=data,
        teacher=teacher,
        terms=terms,
        selection=selection,
        scope=scope,
        evals=evals,
        train=TrainOptions(batch=batch, **options),
        components=lambda: [*(one.loss for one in terms), *([selection] if selection else [])],
    )
    run = RunState(
        recipe=stage,
        folder=folder,
        device=accelerator.device,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        steps=steps,
        micro_batch=micro_batch,
        vocabulary=vocabulary,
    )
    run.tokenizer = None
    run.language_model = proved(student)
    run.chunk = chunk
    hidden = HiddenTerms(terms)
    hidden.watch(run.language_model)
    hidden.prepare(run)
    objective = Objective(run.language_model, chunk, hidden)
    objective.learned.to(next(student.parameters()).dtype)
    optimizer = optimizer or Noting(objective.parameters(), lr=0.1)
    return Trainer(
        run=run,
        host=Events(),
        accelerator=accelerator,
        objective=objective,
        layout=Layout(accelerator),
        wrapped=accelerator.prepare(objective),
        values=values or (lambda some: values_of([term.loss for term in some])),
        optimizer=optimizer,
        rate=rate,
        rows=TrainingRows(
            lambda epoch: as_rows(rows, "train"),
            order(len(rows), batch, seed),
            run.process,
            run.processes,
        ),
        checkpoints=Checkpoints(
            folder / "checkpoints", accelerator, student, optimizer, keep=run.recipe.train.save_keep
        ),
        signals=signals or SimpleNamespace(agreed=lambda accelerator: 0, take=lambda: 0),
    )


@dataclass
class Result:
    terms: dict[str, float]
    gradients: dict[str, torch.Tensor]
    kept: set[tuple[int, int]]
    valid: int


def step(student, rows, terms, *, selection=None, at=1, **options):
    """What one optimizer step of the engine gives; this process's share of what is kept."""
    watched = Watched(selection) if selection else None
    made = trainer(student, rows, terms, selection=watched, batch=len(rows), **options)
    noted = SimpleNamespace()

    def add(terms, shares, choices, good, squares):
        noted.terms = [term for term, _ in terms]
        noted.shares, noted.choices = shares, choices

    made.recorder.add = add
    made.step(at)
    summed = made.accelerator.reduce(torch.stack(noted.shares).sum(0), "sum")
    labels = [term.label for term in noted.terms]
    names = [name.removeprefix("model.") for name, _ in made.objective.named_parameters()]
    return Result(
        terms=dict(zip(labels, summed.tolist(), strict=True)),
        gradients=dict(zip(names, made.optimizer.seen, strict=True)),
        kept=watched.kept if watched else set(),
        valid=int(noted.choices.valid),
    )
