"""A whole run, written out: rows in their order, the objective by whole logits, the optimizer.

Everything is in float64, nothing is chunked, and no part of the engine is used.
"""

import math
from copy import copy
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import oracle_losses
import torch
from oracle import top, weight_at
from oracle_rows import evaluated, order, rows_of
from oracle_teachers import Known, check_head, check_ranking, wanted_of, whole_logits

DEFAULTS = {
    "ce": {},
    "kl": {},
    "reverse-kl": {},
    "skew-kl": {"skew": 0.1},
    "skew-reverse-kl": {"skew": 0.1},
    "jsd": {"beta": 0.5, "normalise": False},
    "tvd": {"scale_by_t2": False},
    "symmetric-kl": {"forward": 0.5},
    "adaptive-kl": {"head": 0.5, "form": "head"},
    "entropy-opd": {"threshold": 0.8},
    "renormalised": {"over": "all"},
    "alpha-beta": {"alpha": 0.2, "beta": 0.7},
}
COMMON = {"temperature": 1.0, "scale_by_t2": True, "weight": 1.0, "on": "kept"}


@dataclass
class Results:
    """What happened: each step's terms, and what was measured at the end."""

    terms: list[dict[str, float]] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    nll: float = 0.0
    at_border: bool = False  # whether rounding decides on which side of a step a number is


def terms_of(recipe):
    """Each loss's options with all defaults, and the name that tells it apart."""
    found = []
    for table in recipe["loss"]:
        known = COMMON | DEFAULTS[table["use"]] | table
        for key in ("weight", "temperature"):
            if isinstance(known[key], dict):
                known[key] = SimpleNamespace(**{"until": 1.0} | known[key])
        same = sum(one.name == table["use"] for one in found)
        label = f"{table['use']}.{same + 1}" if same else table["use"]
        found.append(SimpleNamespace(name=table["use"], label=label, **known))
    return found


@dataclass
class Step:
    """The tokens of a step, in order."""

    row: list[int]
    position: list[int]
    labels: torch.Tensor
    student: torch.Tensor  # [n, V]
    known: Known | None
    reference: torch.Tensor | None  # losses [n]
    at_border: bool = False


def values(term, step, seen):
    """What each of some tokens (by index) is worth in a term [n]."""
    student, labels = step.student[seen], step.labels[seen]
    if term.name == "ce":
        return oracle_losses.nll(student, labels)
    known = step.known.at(seen)
    p, q = known.p(term.temperature), known.q(student, term.temperature)
    if term.name == "adaptive-kl":
        check_head(p, term)
    if term.name == "tvd":  # its slope jumps where both are equal
        step.at_border |= bool(((p - q).abs() < 1e-5 * p).any())
    factor = term.temperature**2 if term.scale_by_t2 else 1
    return factor * oracle_losses.divergence(term, p, q)


def scores_of(selection, step, seed, number):
    match selection["use"]:
        case "rho":
            return oracle_losses.nll(step.student, step.labels) - step.reference
        case "hardest":
            return oracle_losses.nll(step.student, step.labels)
        case "entropy" if selection.get("of", "student") == "student":
            return oracle_losses.entropy(step.student)
        case "entropy":
            return oracle_losses.entropy(step.known.logits)
        case "random":
            drawn = {
                row: np.random.default_rng([seed, number, row]).random(1000, dtype=np.float32)
                for row in set(step.row)
            }
            places = zip(step.row, step.position, strict=True)
            return torch.tensor([float(drawn[row][position]) for row, position in places])


def keep_of(selection):
    keep = selection["keep"]
    return SimpleNamespace(**{"until": 1.0} | keep) if isinstance(keep, dict) else keep


def chosen(recipe, step, members, number, steps):
    """Of some tokens of a step (by index), those that the selection keeps."""
    selection = recipe.get("selection")
    if selection is None:
        return members
    share = weight_at(keep_of(selection), (number - 1) / steps)
    with torch.no_grad():
        all_scores = scores_of(selection, step, recipe["seed"], number).tolist()
    scores = [all_scores[n] for n in members]
    if selection["use"] != "random":
        check_ranking(scores, wanted_of(share, len(scores)))
    ranked = top(scores, share)
    return [members[n] for n in sorted(ranked)]


def objective(recipe, step, number, steps, groups):
    """Each term's weighted mean over the tokens that it sees, and how many were kept."""
    totals, kept = {}, 0
    everyone = range(len(step.row))
    for group in groups:
        members = [n for n in everyone if step.row[n] in group]
        some = chosen(recipe, step, members, number, steps)
        kept += len(some)
        rest = [n for n in members if n not in set(some)]
        for term in terms_of(recipe):
            seen = {"kept": some, "all": members, "dropped": rest}[term.on]
            weight = weight_at(term.weight, (number - 1) / steps)
            if weight and seen:
                now = copy(term)
                now.temperature = weight_at(term.temperature, (number - 1) / steps)
                each = values(now, step, seen)
                counted = weight * len(members) / len(everyone) * each.sum() / len(seen)
                totals[term.label] = totals.get(term.label, 0.0) + counted
    return totals, kept


def groups_of(recipe, processes):
    """Which rows of a step are ranked against each other."""
    train = recipe["train"]
    batch = train["batch"]
    if recipe.get("selection", {}).get("scope", "step") == "step":
        return [range(batch)]
    found = []
    for process in range(processes):
        mine = range(batch * process // processes, batch * (process + 1) // processes)
        size = train.get("micro_batch", batch)
        found += [mine[at : at + size] for at in range(0, len(mine), size)]
    return found


def steps_of(train, rows):
    """How many steps the recipe asks for."""
    if "steps" in train:
        return train["steps"]
    if "tokens" in train:
        held = sum(len(row.cells) for row in rows)
        return math.ceil(train["tokens"] * len(rows) / (held * train["batch"]))
    return math.floor(len(rows) * train["epochs"] * (1 + 1e-12)) // train["batch"]


def rate(train, step, steps):
    """The learning rate of a step, which count from 1."""
    done, warmup = step - 1, train.get("warmup", 0)
    warmup = round(warmup * steps) if warmup < 1 else warmup
    schedule = train.get("schedule", "cosine")
    if schedule == "constant":
        share = 1.0
    elif done < warmup:
        return train["lr"] * done / warmup
    else:
        way = (done - warmup) / max(1, max(steps, warmup + 1) - warmup)
        falls = {"linear": 1 - way, "cosine": (1 + math.cos(math.pi * way)) / 2}
        share = falls.get(schedule, 1.0)
    least = train.get("min_lr", 0.0)
    return train["lr"] * (least + (1 - least) * share)


class Optimizer:
    """AdamW or plain gradient descent, over [(parameter, whether it decays)]."""

    def __init__(self, train, parameters):
        self.train, self.parameters, self.steps = train, parameters, 0
        self.state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    @torch.no_grad()
    def step(self, lr):
        self.steps += 1
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        clip = self.train.get("clip", 1.0)
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        if clip and norm > clip:
            gradients = [gradient * clip / (norm + 1e-6) for gradient in gradients]
        for p, gradient, state in zip(self.parameters, gradients, self.state, strict=True):
            decay = self.train.get("weight_decay", 0.0) if p.ndim > 1 else 0.0
            if self.train.get("optimizer", "adamw") == "sgd":
                p -= lr * (gradient + decay * p)
            else:
                self._adamw(p, gradient, *state, lr, decay)
            p.grad = None

    def _adamw(self, p, gradient, mean, square, lr, decay):
        first, second = self.train.get("betas", [0.9, 0.999])
        p *= 1 - lr * decay
        mean.mul_(first).add_((1 - first) * gradient)
        square.mul_(second).add_((1 - second) * gradient.square())
        unbiased = mean / (1 - first**self.steps)
        size = (square / (1 - second**self.steps)).sqrt() + self.train.get("eps", 1e-8)
        p -= lr * unbiased / size


def train(recipe, student, letters, vocabulary, answers, losses, processes=1):
    """Run a recipe; the student is changed. `read_outputs` and `losses` give, for a list of rows,
    what the teacher says of each row's predictions, and the reference's losses there; or are None.
    """
    rows = rows_of(recipe["data"], "train", letters)
    options, seed = recipe["train"], recipe["seed"]
    steps = steps_of(options, rows)
    known = answers(rows) if answers else [None] * len(rows)
    lost = losses(rows) if losses else [None] * len(rows)
    optimizer = Optimizer(options, [p for p in student.parameters() if p.requires_grad])
    results = Results(at_border=any(one is not None and one.at_border for one in known))
    for number in range(1, steps + 1):
        indices = order(len(rows), options["batch"], seed, number)
        some = [rows[n] for n in indices]
        step = step_of(some, student, vocabulary)
        if answers:
            step.known = Known.joined([known[n] for n in indices])
        if losses:
            step.reference = torch.cat([lost[n] for n in indices])
        totals, kept = objective(recipe, step, number, steps, groups_of(recipe, processes))
        results.at_border |= step.at_border
        if totals:
            sum(totals.values()).backward()
        results.terms.append({label: float(total.detach()) for label, total in totals.items()})
        results.kept.append(kept / max(1, len(step.row)) if "selection" in recipe else 1.0)
        optimizer.step(rate(options, number, steps))
    results.nll = measured(recipe, student, letters, vocabulary)
    return results


def step_of(rows, student, vocabulary):
    logits = whole_logits(student, rows, vocabulary)
    places = [(n, *each) for n, row in enumerate(rows) for each in row.predictions()]
    at = [logits[n][position] for n, position, _ in places]
    found = torch.stack(at) if at else logits[0][:0]
    labels = torch.tensor([label for *_, label in places], dtype=torch.int64)
    return Step([n for n, *_ in places], [p for _, p, _ in places], labels, found, None, None)


@torch.no_grad()
def measured(recipe, student, letters, vocabulary):
    """The mean negative log-likelihood of the validation rows that are measured."""
    rows = rows_of(recipe["data"], "validation", letters)
    some = evaluated(rows, recipe["train"].get("eval_rows", 2048), 0)
    step = step_of(some, student, vocabulary)
    return float(oracle_losses.nll(step.student, step.labels).mean())
