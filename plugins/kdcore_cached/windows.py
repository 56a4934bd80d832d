"""The teacher's input for a cache: the run's rows, or windows over whole documents.

A window is as long as the teacher's context and starts at the beginning of the text. Longer texts
have windows that overlap by half: except in the first window, every token is predicted with at
least half a window of context. A stored value depends only on the text and the window's length, not
on the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from kdcore import Batch, Split, Teacher, UsageError, options_of

Ids = Callable[[np.ndarray], np.ndarray]
"""Indices counted through all documents -> the ids there."""


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end`; those from `first` on are predicted by this window only."""

    begin: int
    first: int
    end: int


class Windows:
    """The windows over a split: of each document if isolated, else of the split as one text."""

    def __init__(self, split: Split, length: int, *, isolated: bool) -> None:
        self.split, self.length = split, length
        self._begins = np.concatenate([[0], np.cumsum(split.lengths, dtype=np.int64)])
        self._texts = self._begins if isolated else self._begins[[0, -1]]

    def over(self, slots: np.ndarray) -> list[Window]:
        """The windows that predict these tokens, in order. The first token of a text has none."""
        text = np.searchsorted(self._texts, slots, side="right") - 1
        offset = slots - self._texts[text]
        step = max(1, self.length // 2)
        number = np.where(offset < self.length, 0, (offset - self.length) // step + 1)
        found = np.unique(np.stack([text, number]), axis=1).T
        return [self._window(int(text), int(number), step) for text, number in found]

    def _window(self, text: int, number: int, step: int) -> Window:
        start, stop = int(self._texts[text]), int(self._texts[text + 1])
        begin = start + number * step
        first = begin + (self.length - step if number else 1)
        return Window(begin, first, min(begin + self.length, stop))

    def batches(self, windows: list[Window], like: Batch, ids: Ids) -> Iterator[Batch]:
        """Batches of windows of similar length, right-padded.

        Each has at most as many tokens as `like`, or one window.
        """
        ordered = sorted(windows, key=lambda window: window.end - window.begin)
        some: list[Window] = []
        for window in ordered:
            longest = window.end - window.begin
            if some and (len(some) + 1) * longest > like.input_ids.numel():
                yield self._batch(some, like, ids)
                some = []
            some.append(window)
        if some:
            yield self._batch(some, like, ids)

    def _batch(self, windows: list[Window], like: Batch, ids: Ids) -> Batch:
        time = max(window.end - window.begin for window in windows)
        place = np.array([[window.begin] for window in windows]) + np.arange(time)
        real = place < np.array([[window.end] for window in windows])
        tokens, document, offset = (np.zeros_like(place), *np.full((2, *place.shape), -1))
        tokens[real] = ids(place[real])
        document[real] = np.searchsorted(self._begins, place[real], side="right") - 1
        offset[real] = place[real] - self._begins[document[real]]
        has_label = real[:, 1:] & (place[:, 1:] >= np.array([[window.first] for window in windows]))
        labels = np.full_like(place, -100)
        labels[:, :-1] = np.where(has_label, tokens[:, 1:], -100)

        def moved(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(like.input_ids.device)

        return Batch(
            input_ids=moved(tokens),
            position_ids=moved(np.tile(np.arange(time), (len(windows), 1))),
            attention_mask=None if real.all() else moved(real.astype(np.int64)),
            document=moved(document),
            offset=moved(offset),
            labels=moved(labels.reshape(-1)),
            valid=moved(np.flatnonzero(labels != -100)),
            vocabulary=like.vocabulary,
            split=like.split,
        )


def length_of(teacher: Teacher, device: torch.device) -> int:
    """The length of a teacher's windows if the recipe does not set it."""
    found = own_length(teacher, device)
    if found is None:
        raise UsageError(
            f"the context length of the teacher {teacher.name!r} is not known; set it in tokens: "
            "window = 1024"
        )
    return found


def own_length(teacher: Teacher, device: torch.device) -> int | None:
    """The maximum context of a teacher and those nested in it, as far as known."""
    config = teacher.architecture(device)
    found = [] if config is None else [getattr(config, "max_position_embeddings", None)]
    for option in options_of(type(teacher)):
        value = getattr(teacher, option.name, None)
        nested = value if isinstance(value, list) else [value]
        found += [own_length(each, device) for each in nested if isinstance(each, Teacher)]
    return min((each for each in found if each), default=None)
