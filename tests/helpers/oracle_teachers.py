"""What teachers say, written out: whole logits of every row, averaged, cut to few ids, or drawn."""

import math

import numpy as np
import torch
from oracle_losses import mass_from, mass_up_to, nll

CLOSE = 1e-6
MASK = 2**64 - 1


class TooClose(Exception):
    """Float32 and float64 may decide otherwise here: nobody can say who is right."""


def whole_logits(model, rows, vocabulary):
    """[time, vocabulary] of each row: every piece by itself, with nothing before it.

    Pieces run side by side, filled up at their ends, which no token before can see.
    """
    pieces = [row.cells[begin:end] for row in rows for begin, end in row.pieces]
    longest = max(map(len, pieces))
    ids = [[cell.id for cell in piece] + [0] * (longest - len(piece)) for piece in pieces]
    logits = model(input_ids=torch.tensor(ids), use_cache=False).logits[..., :vocabulary]
    real = torch.cat([one[: len(piece)] for one, piece in zip(logits, pieces, strict=True)])
    return torch.split(real, [len(row.cells) for row in rows])


class Model:
    """A model, in float64 and never with dropout."""

    def __init__(self, model, vocabulary):
        self.model, self.vocabulary = model.double().eval(), vocabulary

    @torch.no_grad()
    def logits(self, rows):
        return whole_logits(self.model, rows, self.vocabulary)


class Average:
    """Several teachers: the mean of their logits, or the logarithm of their mean probability."""

    def __init__(self, members, weights, average):
        weights = weights or [1.0] * len(members)
        self.members, self.average = members, average
        self.shares = [weight / sum(weights) for weight in weights]

    def logits(self, rows):
        each = zip(*(member.logits(rows) for member in self.members), strict=True)
        return [self._one(some) for some in each]

    def _one(self, logits):
        if self.average == "logits":
            return sum(share * one for share, one in zip(self.shares, logits, strict=True))
        p = (one.softmax(-1) for one in logits)
        return sum(share * one for share, one in zip(self.shares, p, strict=True)).log()


class Known:
    """A teacher's answers at tokens [n]: whole logits, or those of some ids and of all others."""

    def __init__(self, logits, ids=None, *, whole=None, at_border=False):
        self.logits, self.ids = logits, ids
        self.whole = whole  # of the ids in the store, the logits that it was made of
        self.at_border = at_border  # whether rounding may have gone either way

    @classmethod
    def joined(cls, some):
        ids = None if some[0].ids is None else torch.cat([one.ids for one in some])
        at_border = any(one.at_border for one in some)
        whole = None if some[0].whole is None else torch.cat([one.whole for one in some])
        logits = torch.cat([one.logits for one in some])
        return cls(logits, ids, whole=whole, at_border=at_border)

    def at(self, tokens):
        parts = (self.logits, self.ids, self.whole)
        logits, ids, whole = (None if part is None else part[tokens] for part in parts)
        return Known(logits, ids, whole=whole)

    def p(self, temperature):
        """At T, the others hold a share of the whole at T, kept in half precision."""
        if self.whole is None or temperature == 1:
            return torch.softmax(self.logits / temperature, -1)
        tempered = torch.softmax(self.whole / temperature, -1)
        outside = torch.ones_like(tempered).scatter(-1, self.ids, 0.0)
        odds = _half_odds((tempered * outside).sum(-1))
        known = self.logits[:, :-1] / temperature
        others = known.logsumexp(-1) + odds
        return torch.softmax(torch.cat([known, others[:, None]], -1), -1)

    def q(self, student, temperature):
        """The student's distribution over the same things."""
        if self.ids is None:
            return torch.softmax(student / temperature, -1)
        exact = self.whole is not None
        masses = torch.softmax(student / temperature if exact else student, -1)
        known = masses.gather(-1, self.ids)
        outside = torch.ones_like(masses).scatter(-1, self.ids, 0.0)
        coarse = torch.cat([known, (masses * outside).sum(-1, keepdim=True)], -1)
        if exact:
            return coarse
        tempered = coarse ** (1 / temperature)
        return tempered / tempered.sum(-1, keepdim=True)


def _half_odds(share):
    """log of share / (1 - share), the log of the share being kept in half precision."""
    log = share.log().clamp(max=-(2.0**-24)).half().double()
    return log - (-torch.expm1(log)).log()


def likeliest(logits, k):
    """The k likeliest ids, and what is left: as logarithms in half precision."""
    p, ids = logits.softmax(-1).sort(descending=True)
    if k < p.shape[1] and ((p[:, k - 1] - p[:, k]) < CLOSE * p[:, k]).any():
        raise TooClose
    masses = torch.cat([p[:, :k], p[:, k:].sum(-1, keepdim=True)], -1)
    logs = masses.log()
    halves = logs.half()
    step = torch.from_numpy(np.spacing(halves.abs().numpy()).astype(np.float64))
    distance = step / 2 - (logs - halves.double()).abs()
    at_border = bool((distance.abs() < CLOSE).any())
    return Known(halves.double(), ids[:, :k], whole=logits, at_border=at_border)


def drawn(logits, cells, draws, seed):
    """As many ids drawn from each distribution, with the shares of the draws that they got."""
    vocabulary = logits.shape[1]
    width = min(draws, vocabulary - 1)
    ids, masses = [], []
    for one, cell in zip(logits, cells, strict=True):
        counts = counted(one.softmax(-1), uniform(seed, cell.document, cell.offset, draws))
        order = sorted(range(vocabulary), key=lambda n: (-counts[n], n))[:width]
        ids.append(order)
        known = [counts[n] / draws for n in order]
        masses.append([*known, sum(counts[n] for n in range(vocabulary) if n not in order) / draws])
    masses = torch.tensor(masses, dtype=torch.float64).reshape(-1, width + 1)
    return Known(masses.log(), torch.tensor(ids, dtype=torch.int64).reshape(-1, width))


def counted(p, numbers):
    borders = p.cumsum(-1).tolist()
    counts = [0] * len(borders)
    for number in numbers:
        if min(abs(number - border) for border in borders) < CLOSE / 10:
            raise TooClose
        counts[next(n for n, border in enumerate(borders) if number < border)] += 1
    return counts


def uniform(seed, document, offset, draws):
    """Numbers in [0, 1) that hang on the token's place: SplitMix64, started anew at each."""
    state = seed
    for key in (document, offset):
        state = mixed(state + STEP) ^ key
    start = mixed(state + STEP)
    return [(mixed(start + n * STEP) >> 11) * 2.0**-53 for n in range(1, draws + 1)]


STEP = 0x9E3779B97F4A7C15


def mixed(state):
    state &= MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def losses(logits, labels):
    """What a cache of losses holds."""
    return nll(logits, labels).float().double()


def check_head(p, loss):
    """Which ids are the head hangs on a sum that may lie at its border."""
    by_head = loss.form == "head"
    gaps = mass_up_to(p) - (1 - loss.head) if by_head else mass_from(p) - loss.head
    if (gaps.abs() < CLOSE).any():
        raise TooClose


def check_ranking(scores, wanted):
    """The last one kept and the first one dropped must not be as good as equal."""
    ranked = sorted(scores, reverse=True)
    if 0 < wanted < len(ranked) and ranked[wanted - 1] - ranked[wanted] < 10 * CLOSE:
        raise TooClose


def wanted_of(share, tokens):
    return math.ceil(share * tokens - 1e-9)
