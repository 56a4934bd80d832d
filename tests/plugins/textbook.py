"""Divergences as a textbook has them: sums over probabilities, not logarithms; for float64 only."""

import torch


def KL(a, b):
    return (a * (a / b).log()).sum(-1)


def CE(q, y):
    return -q.gather(-1, y[:, None])[:, 0].log()


def CE_ALL(q):
    return -q.log().mean(-1)


def TV(p, q):
    return (p - q).abs().sum(-1) / 2


def H(p):
    return -(p * p.log()).sum(-1)


def KL_KNOWN(p, q, over):
    """The last id stands for all that the teacher does not know."""
    known = p[..., :-1] / p[..., :-1].sum(-1, keepdim=True)
    q = q[..., :-1]
    return KL(known, q / q.sum(-1, keepdim=True) if over == "known" else q)


def AKL(p, q, head=None, *, authors=None):
    return _akl_of_authors(p, q, authors) if head is None else _akl(p, q, head)


def _akl_of_authors(p, q, bound):
    """Row by row: walk down from the likeliest id, and stop before the head gets too heavy."""
    values = []
    for one, other in zip(p, q, strict=True):
        apart = (one - other).abs().detach()
        first, *rest = one.argsort(descending=True)
        of_head, mass = apart[first], float(one[first])
        for index in rest:
            mass += float(one[index])
            if mass > bound:
                break
            of_head = of_head + apart[index]
        weight = of_head / apart.sum()
        values.append(weight * KL(one, other) + (1 - weight) * KL(other, one))
    return torch.stack(values)


def _akl(p, q, head):
    """Row by row: walk up from the least likely id, and stop before the tail gets too heavy."""
    values = []
    for one, other in zip(p, q, strict=True):
        of_tail, mass = torch.zeros((), dtype=p.dtype), 0.0
        apart = (one - other).abs().detach()
        for index in one.argsort():
            mass += float(one[index])
            if mass > 1 - head:
                break
            of_tail = of_tail + apart[index]
        weight = 1 - of_tail / apart.sum()
        values.append(weight * KL(one, other) + (1 - weight) * KL(other, one))
    return torch.stack(values)


def AB(p, q, alpha, beta):
    if alpha == beta == 0:
        return ((p.log() - q.log()) ** 2).sum(-1) / 2
    if beta == 0:
        return (p**alpha * (p**alpha / q**alpha).log() - p**alpha + q**alpha).sum(-1) / alpha**2
    if alpha == 0:
        return AB(q, p, beta, 0)
    both = alpha + beta
    inside = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
    return -inside.sum(-1) / (alpha * beta)


FUNCTIONS = {
    "KL": KL,
    "CE": CE,
    "CE_ALL": CE_ALL,
    "TV": TV,
    "H": H,
    "AKL": AKL,
    "AB": AB,
    "KL_KNOWN": KL_KNOWN,
}


def evaluate(formula, student, teacher, labels):
    """The value of a loss's formula for these logits and labels."""
    known = {
        "p": lambda temperature: (teacher / temperature).softmax(-1),
        "q": lambda temperature: (student / temperature).softmax(-1),
        "y": labels,
        **FUNCTIONS,
    }
    return eval(formula, {"__builtins__": {}}, known)
