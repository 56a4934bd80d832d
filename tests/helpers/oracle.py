"""The objective written out: what one optimizer step is worth, and its gradient.

Nothing here is fast, chunked or shared with the engine. Every document runs through the whole
model by itself, all logits are kept, losses (in `oracle_losses`) are the formulas of textbooks,
tokens are ranked by `sorted`, means are sums divided by counts, and autograd does the rest. In
float64 this is the judge of the engine.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from oracle_losses import entropy, nll, value

NOT_TRAINED = -100


@dataclass
class Token:
    """One prediction: at `position` of `row`, `label` comes next."""

    row: int
    position: int
    label: int
    student: torch.Tensor  # logits [V]
    teacher: torch.Tensor | None  # logits [V]
    states: list[torch.Tensor] | None = None  # of every layer [H]
    teacher_states: list[torch.Tensor] | None = None

    @property
    def place(self):
        return self.row, self.position


@dataclass
class Answer:
    terms: dict[str, float]
    gradients: dict[str, torch.Tensor]
    kept: set[tuple[int, int]]  # (row, position)
    tokens: int


# Rows: what is predicted, and by which logits


def pieces(row):
    """A row's isolated documents: where positions do not go on, another one begins."""
    position = row.get("position", range(len(row["input_ids"])))
    begins = [n for n in range(len(position)) if n == 0 or position[n] != position[n - 1] + 1]
    return list(zip(begins, [*begins[1:], len(position)], strict=True))


def logits_of(model, row, vocabulary):
    """[time, vocabulary]: every document alone, through the whole model."""
    ids = torch.tensor(row["input_ids"])
    alone = [
        model(input_ids=ids[None, begin:end], use_cache=False).logits[0, :, :vocabulary]
        for begin, end in pieces(row)
    ]
    return torch.cat(alone)


def states_of(model, row):
    """Of every layer [time, H], as transformers tells them: every document alone."""
    ids = torch.tensor(row["input_ids"])
    alone = [
        model(
            input_ids=ids[None, begin:end], use_cache=False, output_hidden_states=True
        ).hidden_states
        for begin, end in pieces(row)
    ]
    return [torch.cat([each[0] for each in layer]) for layer in zip(*alone, strict=True)]


def predicted(row):
    """(position, label) of each token to learn: the next one of the same document, if trained."""
    labels = row.get("labels", row["input_ids"])
    for begin, end in pieces(row):
        for position in range(begin, end - 1):
            if labels[position + 1] != NOT_TRAINED:
                yield position, int(labels[position + 1])


def tokens_of(rows, student, teacher, vocabulary, shown=None):
    """All tokens of the step, in order. `teacher` gives logits [time, vocabulary] of a row.

    `shown` is the teacher's model, where states are compared.
    """
    for number, row in enumerate(rows):
        ours = logits_of(student, row, vocabulary)
        states = states_of(student, row) if shown else None
        with torch.no_grad():
            theirs = teacher(row) if teacher else None
            shows = states_of(shown, row) if shown else None
        for position, label in predicted(row):
            other = None if theirs is None else theirs[position]
            at = [each and [layer[position] for layer in each] for each in (states, shows)]
            yield Token(number, position, label, ours[position], other, *at)


# Teachers: functions of a row


def model_teacher(model, vocabulary):
    """Never with dropout."""
    return lambda row: logits_of(model.eval(), row, vocabulary)


def mean_of_logits(teachers, weights):
    """The normalised geometric mean of the teachers' distributions."""
    share = [weight / sum(weights) for weight in weights]
    return lambda row: sum(w * each(row) for w, each in zip(share, teachers, strict=True))


def mixture(teachers, weights):
    """The logits of the weighted mean of the teachers' probabilities."""
    share = [weight / sum(weights) for weight in weights]
    return lambda row: sum(
        w * torch.softmax(each(row), -1) for w, each in zip(share, teachers, strict=True)
    ).log()


# Selections: scores, ranked over the whole step


def top(scores, share):
    """The ceil(share x N) highest; of equal ones the first; never one that is not a number."""
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    wanted = math.ceil(share * len(scores) - 1e-9)
    return {n for n in order[:wanted] if not math.isnan(scores[n])}


def rho(reference):
    """How far the student is behind a reference, which is a function of a row."""

    def scores(tokens, rows):
        known = {n: reference(rows[n]) for n in {token.row for token in tokens}}
        return [
            float(nll(t.student, t.label) - nll(known[t.row][t.position], t.label)) for t in tokens
        ]

    return scores


def hardest(tokens, rows):
    return [float(nll(token.student, token.label)) for token in tokens]


def entropy_of(which):
    return lambda tokens, rows: [float(entropy(getattr(token, which))) for token in tokens]


def random(seed, step):
    """One stream of numbers a row, from (seed, step, row)."""

    def scores(tokens, rows):
        streams = [np.random.default_rng([seed, step, n]) for n in range(len(rows))]
        drawn = [stream.random(1000, dtype=np.float32) for stream in streams]
        return [float(drawn[token.row][token.position]) for token in tokens]

    return scores


# The step


def step(
    student,
    rows,
    terms,
    *,
    vocabulary,
    teacher=None,
    scores=None,
    share=1.0,
    done=0.0,
    groups=None,
    shown=None,
):
    """The weighted terms, their gradient, and who was kept.

    `groups` (numbers of rows) rank by themselves instead of the whole step, each counting as its
    share of the tokens.
    """
    tokens = list(tokens_of(rows, student, teacher, vocabulary, shown))
    groups = groups or [list(range(len(rows)))]
    totals, kept = {}, set()
    for group in groups:
        members = [token for token in tokens if token.row in group]
        chosen = choose(members, rows, scores, share)
        kept |= {token.place for token in chosen}
        for term in terms:
            counted = len(matching(members, rows, term))
            counted /= max(1, len(matching(tokens, rows, term)))
            some = matching(seen(members, chosen, term.on), rows, term)
            mean = weight_at(term.weight, done) * counted * mean_of(term.loss, some)
            totals[term.label] = totals.get(term.label, 0.0) + mean
    gradients = gradients_of(student, sum(totals.values()), learned_by(terms))
    values = {label: float(torch.as_tensor(total).detach()) for label, total in totals.items()}
    return Answer(values, gradients, kept, len(tokens))


def choose(tokens, rows, scores, share):
    if scores is None:
        return tokens
    with torch.no_grad():
        ranked = top(scores(tokens, rows), share)
    return [tokens[n] for n in sorted(ranked)]


def seen(tokens, kept, on):
    places = {token.place for token in kept}
    match on:
        case "kept":
            return kept
        case "all":
            return tokens
        case "dropped":
            return [token for token in tokens if token.place not in places]


def matching(tokens, rows, term):
    """Those tokens whose document's columns are as a term's `where` says."""
    where = getattr(term, "where", None) or {}

    def matches(token):
        row = rows[token.row]
        documents = list(dict.fromkeys(list(row["document"])))
        mine = documents.index(row["document"][token.position + 1])
        columns = row.get("columns", {})
        known = {"source": "data", **(columns if isinstance(columns, dict) else columns[mine])}
        for name, wanted in where.items():
            wanted = wanted if isinstance(wanted, list) else [wanted]
            if name not in known or known[name] not in wanted:
                return False
        return True

    return [token for token in tokens if not where or matches(token)]


def weight_at(weight, done):
    """A number, or a straight line from start to end, which is reached at `until`."""
    if isinstance(weight, float | int):
        return weight
    way = min(1.0, done / weight.until)
    return weight.start + (weight.end - weight.start) * way


def mean_of(loss, tokens):
    """The plain mean over tokens: 0 where there are none."""
    return sum(value(loss, token) for token in tokens) / max(1, len(tokens))


def learned_by(terms):
    """What losses between hidden states learn, by the name that the engine has for it."""
    found = [term.loss.learned() for term in terms if hasattr(term.loss, "learned")]
    modules = [module for module in found if module is not None]
    return {
        f"learned.{n}.{name}": parameter
        for n, module in enumerate(modules)
        for name, parameter in module.named_parameters()
    }


def gradients_of(model, total, learned=()):
    """By name, of what is trained."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad} | dict(learned)
    if not isinstance(total, torch.Tensor) or not total.requires_grad:
        return {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    found = torch.autograd.grad(total, tuple(trained.values()), materialize_grads=True)
    return dict(zip(trained, found, strict=True))
