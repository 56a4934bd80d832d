"""BLiMP: does the student prefer the grammatical sentence of a minimal pair?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdcore import Eval, Row, Run, RunError, bos_of, component, hookimpl
from kdcore_blimp.pairs import Pair, files_of, read_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Blimp"]


@component
class Blimp(Eval):
    """Minimal pairs: the share in which the grammatical sentence gets the higher log-probability.

    `path` is a folder of JSONL files with `sentence_good` and `sentence_bad`, one file per
    paradigm, or one such file, or a data set on the hub with one config per paradigm. `paradigms`
    selects among them; `pairs` takes the first so many of each. A sentence's log-probability is the
    sum over all its tokens, after the token that begins a document of the run, else a bos or an
    eos; a tie counts as wrong. `prefix` is prepended to each sentence and scored with it; lm-eval
    uses a space.
    """

    name = "blimp"
    path: str = "nyu-mll/blimp"
    paradigms: Annotated[list[str], Field(min_length=1)] | None = None
    pairs: Annotated[int, Field(ge=1)] | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        self._held: Mapping[str, Sequence[Pair]] | None = None

    def faults(self, recipe: object) -> Iterator[str]:
        """Report a missing path, or a paradigm without a file."""
        try:
            files_of(self.path, self.paradigms)
        except RunError as error:
            yield str(error)

    @hookimpl
    def kdcore_run_start(self) -> None:
        """Read the pairs, so that errors in them show before training."""
        self._paradigms()

    def measure(self, run: Run) -> Mapping[str, float | str]:
        """`blimp`, the unweighted mean over the paradigms, and `blimp/PARADIGM`."""
        paradigms = self._paradigms()
        pairs = [pair for some in paradigms.values() for pair in some]
        sums = run.log_likelihoods(self._rows(pairs, run))
        right = iter([good > bad for good, bad in zip(sums[::2], sums[1::2], strict=True)])
        shares = {name: fmean(islice(right, len(some))) for name, some in paradigms.items()}
        each = {f"{self.name}/{paradigm}": share for paradigm, share in shares.items()}
        return {self.name: fmean(shares.values()), **each}

    def _rows(self, pairs: Sequence[Pair], run: Run) -> Sequence[Row]:
        begins: Sequence[int] = bos_of(run.data, run.tokenizer)
        eos = run.tokenizer.eos_token_id
        if run.data.bos is False and eos is not None:  # the model has never seen a bos
            begins = [eos]
        return rows_of(pairs, run.tokenizer, self.prefix, begins)

    def _paradigms(self) -> Mapping[str, Sequence[Pair]]:
        """The pairs of each paradigm, read once."""
        if self._held is None:
            self._held = read_pairs(self.path, self.paradigms, self.pairs)
        return self._held


def rows_of(
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    prefix: str = "",
    bos: Sequence[int] = (),
) -> Sequence[Row]:
    """A row per sentence, good and bad alternating: the opening token, then the scored tokens."""
    own = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    start = [*bos] or [each for each in own if each is not None][:1]
    if not start:
        raise RunError("the eval 'blimp' needs a tokenizer with a bos or an eos token")
    sentences = [prefix + sentence for pair in pairs for sentence in pair]
    rows = []
    for index, ids in enumerate(tokenizer(sentences, add_special_tokens=False)["input_ids"]):
        if not ids:
            raise RunError(f"the tokenizer has no token for {sentences[index]!r}: no likelihood")
        labels = [*[-100] * len(start), *ids]
        rows.append({"input_ids": [*start, *ids], "labels": labels})
    return rows


@hookimpl
def kdcore_evals() -> Sequence[type[Eval]]:
    """The eval `blimp`."""
    return [Blimp]
