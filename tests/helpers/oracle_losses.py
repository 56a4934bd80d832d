"""What tokens are worth, by the formulas of textbooks: p is the teacher's, q the student's.

Distributions lie along the last dimension, for one token or for many at once.
"""

import torch


def kl(p, q):
    return (torch.xlogy(p, p) - p * q.log()).sum(-1)


def nll(logits, label):
    likelihoods = torch.softmax(logits, -1)
    index = torch.as_tensor(label)[..., None]
    return -likelihoods.gather(-1, index)[..., 0].log()


def entropy(logits):
    p = torch.softmax(logits, -1)
    return -torch.special.xlogy(p, p).sum(-1)


def value(loss, token):
    """What a token is worth in a loss."""
    if loss.name == "ce":
        return nll(token.student, token.label)
    if hasattr(loss, "layers"):
        return between_states(loss, token)
    if hasattr(loss, "known"):
        p, q = (buckets(loss, token, logits) for logits in (token.teacher, token.student))
    else:
        p = torch.softmax(token.teacher / loss.temperature, -1)
        q = torch.softmax(token.student / loss.temperature, -1)
    scaled = loss.temperature**2 if getattr(loss, "scale_by_t2", False) else 1
    return scaled * divergence(loss, p, q)


def between_states(loss, token):
    """The mean over pairs of layers; a projection is a matrix times a state."""
    values = []
    for n, (ours, theirs) in enumerate(loss.layers):
        a, b = token.states[ours], token.teacher_states[theirs]
        if loss.projection == "linear":
            a = loss.learned()[n].weight @ a
        if loss.name == "hidden-mse":
            values.append(((a - b) ** 2).sum() / len(b))
        else:
            values.append(1 - (a * b).sum() / ((a**2).sum().sqrt() * (b**2).sum().sqrt()))
    return sum(values) / len(values)


def buckets(loss, token, logits):
    """The masses of the ids that a loss is said to know, and of all others together; tempered
    before they are summed where `tempers_first` says so, else behind it."""
    first = loss.temperature if hasattr(loss, "tempers_first") else 1
    masses = torch.softmax(logits / first, -1)
    ids = loss.known(token.teacher)
    others = [n for n in range(len(masses)) if n not in ids]
    coarse = torch.stack([*(masses[n] for n in ids), masses[others].sum()])
    tempered = coarse ** (first / loss.temperature)
    return tempered / tempered.sum()


def divergence(loss, p, q):
    match loss.name:
        case "kl":
            return kl(p, q)
        case "reverse-kl":
            return kl(q, p)
        case "skew-kl":
            return kl(p, loss.skew * p + (1 - loss.skew) * q)
        case "skew-reverse-kl":
            return kl(q, (1 - loss.skew) * p + loss.skew * q)
        case "jsd":
            return jensen_shannon(p, q, loss.beta, loss.normalise)
        case "tvd":
            return (p - q).abs().sum(-1) / 2
        case "symmetric-kl":
            return loss.forward * kl(p, q) + (1 - loss.forward) * kl(q, p)
        case "adaptive-kl":
            weight = share_of_head(p, q.detach(), loss)
            return weight * kl(p, q) + (1 - weight) * kl(q, p)
        case "entropy-opd":
            unsure = -torch.xlogy(p, p).sum(-1) > loss.threshold
            return kl(q, p) + torch.where(unsure, kl(p, q), 0.0)
        case "renormalised":
            return without_tail(p, q, loss.over)
        case "alpha-beta":
            return alpha_beta(p, q, loss.alpha, loss.beta)


def jensen_shannon(p, q, beta, normalise):
    if beta in (0, 1):
        return kl(p, q) if beta == 0 else kl(q, p)
    m = beta * p + (1 - beta) * q
    both = beta * kl(p, m) + (1 - beta) * kl(q, m)
    return both / (beta * (1 - beta)) if normalise else both


def without_tail(p, q, over):
    """The last bucket of both is left out, p and maybe q brought to a sum of 1."""
    p, q = p[..., :-1], q[..., :-1]
    if over == "known":
        q = q / q.sum(-1, keepdim=True)
    return kl(p / p.sum(-1, keepdim=True), q)


def share_of_head(p, q, loss):
    """The head's share of all gaps."""
    gaps = (p - q).abs()
    # At equality both divergences are 0, whatever their weights.
    return (gaps * in_head(p, loss)).sum(-1) / gaps.sum(-1).clamp(min=1e-300)


def in_head(p, loss):
    """An id is in the tail where mass_up_to is at most 1 - head; by the authors in the head where
    the mass from it on is at most head, and the likeliest one always."""
    if loss.form == "head":
        return mass_up_to(p) > 1 - loss.head
    return (mass_from(p) <= loss.head) | (p == p.amax(-1, keepdim=True))


def mass_from(p):
    """Of each id, the mass of all ids that are no less likely."""
    return (p[..., None, :] * (p[..., None, :] >= p[..., :, None])).sum(-1)


def mass_up_to(p):
    """Of each id, the mass of all ids that are no likelier."""
    return (p[..., None, :] * (p[..., None, :] <= p[..., :, None])).sum(-1)


def alpha_beta(p, q, alpha, beta):
    if beta == 0:
        return (p**alpha * (alpha * (p / q).log() - 1) + q**alpha).sum(-1) / alpha**2
    if alpha == 0:
        return alpha_beta(q, p, beta, 0)
    whole = alpha + beta
    inner = p**alpha * q**beta - alpha / whole * p**whole - beta / whole * q**whole
    return -inner.sum(-1) / (alpha * beta)
