"""Documents as ids, and how they become rows, written out: lists of numbers, one at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

NOT_TRAINED = -100


@dataclass(frozen=True)
class Cell:
    """A token of a row: where it comes from, and whether it is learned."""

    id: int
    label: int
    document: int
    offset: int


@dataclass(frozen=True)
class Row:
    cells: tuple[Cell, ...]
    pieces: tuple[tuple[int, int], ...]  # begin and end of what sees only itself

    def predictions(self):
        """(position, label) of every token to learn: the next one of the same piece."""
        for begin, end in self.pieces:
            for position in range(begin, end - 1):
                label = self.cells[position + 1].label
                if label != NOT_TRAINED:
                    yield position, label


def documents(data, split, letters):
    """Each line's letters as ids from 1 on, then the end of text, 0."""
    found = []
    for line in Path(data["path" if split == "train" else "validation"]).read_text().splitlines():
        ids = [letters.index(letter) + 1 for letter in line] + [0] * data["eos"]
        prompt = len(ids) // 3 if data["use"] == "prompted" else 0
        labels = [NOT_TRAINED] * prompt + ids[prompt:]
        places = enumerate(zip(ids, labels, strict=True))
        found.append([Cell(*both, len(found), offset) for offset, both in places])
    return found


def rows_of(data, split, letters):
    """All rows of a split."""
    known = documents(data, split, letters)
    block = data["block"]
    if data["rows"] == "one":
        return [alone(piece) for piece in one(known, block, data["cut"]) if len(piece) > 1]
    if data["rows"] == "chunk":
        flat = [cell for document in known for cell in document]
        cuts = [flat[at : at + block] for at in range(0, len(flat), block)]
        return [alone(cut) for cut in cuts if len(cut) > 1]
    return [side_by_side(row) for row in packed(in_pieces(known, block), block)]


def one(known, block, cut):
    if cut == "split":
        return in_pieces(known, block)
    return [each[:block] if cut == "right" else each[-block:] for each in known]


def in_pieces(known, block):
    return [each[at : at + block] for each in known for at in range(0, len(each), block)]


def packed(pieces, block):
    """The longest first, each into the fullest row that has room, of equal ones into the newest."""
    rows, filled = [], []  # `filled`: numbers of rows, in the order in which they were added to
    for n in sorted(range(len(pieces)), key=lambda n: -len(pieces[n])):
        room = {r: block - sum(len(pieces[m]) for m in rows[r]) for r in filled}
        fitting = [r for r in filled if room[r] >= len(pieces[n])]
        least = min((room[r] for r in fitting), default=None)
        row = [r for r in fitting if room[r] == least][-1] if fitting else len(rows)
        if not fitting:
            rows.append([])
        rows[row].append(n)
        filled = [r for r in filled if r != row] + [row]
    return [[pieces[n] for n in sorted(row)] for row in rows]


def alone(cells):
    return Row(tuple(cells), ((0, len(cells)),))


def side_by_side(pieces):
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    cells = tuple(cell for piece in pieces for cell in piece)
    return Row(cells, tuple(zip([0, *ends[:-1]], ends, strict=True)))


def order(rows, batch, seed, step):
    """The numbers of a step's rows: epoch after epoch, each in an order of its own."""
    places = range((step - 1) * batch, step * batch)
    orders = {n // rows: None for n in places}
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(rows) for epoch in orders}
    return [int(orders[n // rows][n % rows]) for n in places]


def evaluated(rows, wanted, seed):
    """The validation rows that are measured: all, or some drawn once."""
    if wanted == "all" or wanted >= len(rows):
        return rows
    chosen = np.random.default_rng([seed, 0x0E7A1]).choice(len(rows), wanted, replace=False)
    return [rows[n] for n in sorted(chosen)]
