"""Spans of two tokenisations: every byte in exactly one, none that could be finer."""

from itertools import pairwise

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdcore.data.collate import Collate
from kdcore.objective.alignment import Retokenizer, common_spans, ids_of_same_bytes

TEXTS = [*tiny.TEXTS, "naïve 東京 cafés, 3.14 🙂🙂 def f(x):\n\treturn x"]


def word_pieces():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]", unk_token="[UNK]")


def composed():
    """A byte-level BPE that composes characters first, as Qwen's."""
    made = tiny.byte_tokenizer(TEXTS, 400)
    made.backend_tokenizer.normalizer = normalizers.NFC()
    return made


KINDS = {
    "bytes": tiny.byte_tokenizer(TEXTS, 280),
    "more bytes": tiny.byte_tokenizer(TEXTS[::-1], 500, eos="</s>"),
    "composed": composed(),
    "pieces": tiny.llama_tokenizer(TEXTS),
    "words": word_pieces(),
}
PAIRS = [(a, b) for a in ("bytes", "more bytes", "pieces") for b in KINDS]
letters = st.text(st.sampled_from("ab cé東🙂́\n.1") | st.characters(exclude_categories=["Cs"]))


def borders_of(cuts, end):
    return np.array([0, *sorted(cuts), end])


@given(st.data(), st.integers(1, 30))
def test_spans_are_the_finest_that_both_have(data, end):
    cut = st.lists(st.integers(0, end))
    one, other = (borders_of(data.draw(cut), end) for _ in range(2))
    spans = common_spans(one, other)
    common = sorted({*one.tolist()} & {*other.tolist()})
    found = list(zip(one[spans.first], one[spans.end], strict=True))
    assert found == list(pairwise(common))
    assert found == list(zip(other[spans.other_first], other[spans.other_end], strict=True))
    # Tokens of no bytes before a span are not in it.
    assert all(one[first + 1] > one[first] for first in spans.first)


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@given(text=letters)
def test_every_byte_of_a_text_is_in_one_span(ours, theirs, text):
    student, teacher = KINDS[ours], KINDS[theirs]
    ids = student(text, add_special_tokens=False)["input_ids"]
    made = Retokenizer(student, teacher)
    piece = made.piece(ids, whole=True)
    written = b"".join(made.our_bytes[n] for n in ids)
    if ours == "pieces" and written.startswith(b" "):
        written = written[1:]
    try:
        whole = written.decode()
    except UnicodeDecodeError:
        return  # an unknown piece, which says nothing
    if not teacher(whole, add_special_tokens=False)["input_ids"]:
        assert len(piece.spans.first) == 0
        return
    lengths = [len(made.our_bytes[n]) for n in ids]
    borders = np.clip(np.cumsum([0, *lengths]) - (sum(lengths) - len(written)), 0, None)
    covered = [*zip(borders[piece.spans.first], borders[piece.spans.end], strict=True)]
    assert [start for start, _ in covered[1:]] == [end for _, end in covered[:-1]]
    assert covered[0][0] == 0 and covered[-1][1] == len(written)
    if theirs != "words":  # which go by lowered letters
        assert list(piece.ids) == teacher(whole, add_special_tokens=False)["input_ids"]


def test_the_same_tokenizer_is_one_to_one():
    made = Retokenizer(KINDS["bytes"], KINDS["bytes"])
    ids = [*KINDS["bytes"]("a 東京 story")["input_ids"], KINDS["bytes"].eos_token_id]
    piece = made.piece(ids, whole=True)
    assert list(piece.ids) == ids
    single = piece.spans.one_to_one()
    assert single.first.tolist() == single.other_first.tolist() == list(range(len(ids)))


def test_end_tokens_stand_for_each_other():
    student, teacher = KINDS["bytes"], KINDS["more bytes"]
    piece = Retokenizer(student, teacher).piece([*student("a b")["input_ids"], 0], whole=True)
    assert piece.ids[-1] == teacher.eos_token_id
    assert piece.spans.first[-1] == len(student("a b")["input_ids"])
    assert piece.spans.other_first[-1] == len(piece.ids) - 1


def test_half_a_character_at_either_end_is_in_no_span():
    student = KINDS["bytes"]
    ids = student("𓂀a𓂀")["input_ids"]
    assert len(ids) == 9
    piece = Retokenizer(student, KINDS["more bytes"]).piece(ids[1:-1], whole=False)
    assert list(piece.ids) == KINDS["more bytes"]("a")["input_ids"]
    assert (piece.spans.first, piece.spans.end) == ([3], [4])


def test_a_batch_has_the_same_pieces_in_the_same_rows():
    student, teacher = KINDS["bytes"], KINDS["pieces"]
    texts = ["One day a fox.", "東京 is big", "so it goes"]
    some = [np.array([*student(text)["input_ids"], 0]) for text in texts]
    layout = [[(0, 0, len(some[0])), (1, 0, len(some[1]))], [(2, 0, len(some[2]))]]
    batch = tiny.batch(some, layout, vocabulary=len(student))
    made_of = Retokenizer(student, teacher)
    made = made_of(batch)
    restarts = (made.batch.position_ids == 0) & (made.batch.document >= 0)
    assert restarts.sum(1).tolist() == [2, 1]
    ours, theirs = batch.input_ids.flatten().tolist(), made.batch.input_ids.flatten().tolist()
    for first, end, other, other_end in zip(*made.spans, strict=True):
        written = b"".join(made_of.our_bytes[n] for n in ours[first:end])
        others = b"".join(made_of.other_bytes[n] for n in theirs[other:other_end])
        assert written == others or b" " + written == others
    assert sum(theirs[other] == teacher.eos_token_id for other in made.spans.other_first) == 3


def test_an_empty_batch_is_empty_on_the_other_side():
    student, teacher = KINDS["bytes"], KINDS["pieces"]
    batch = Collate(tiny.split_of([]), len(student), tiny.CPU)([])
    made = Retokenizer(student, teacher)(batch)
    assert len(made.spans.first) == 0 and len(made.batch.valid) == 0
    assert made.batch.packing is None  # the model runs: processes do so together


def test_shared_ids_stand_for_the_same_bytes():
    student, teacher = KINDS["bytes"], KINDS["more bytes"]
    made = Retokenizer(student, teacher)
    found = ids_of_same_bytes(made, len(student), 290)
    assert found.pop(student.eos_token_id) == teacher.eos_token_id
    assert all(made.our_bytes[a] == made.other_bytes[b] for a, b in found.items())
    missing = {text for n, text in enumerate(made.our_bytes) if n not in found} - {b""}
    assert missing.isdisjoint(made.other_bytes[:290])
    assert all(b < 290 for b in found.values())


def test_a_special_token_that_the_other_side_spells_alike_is_shared():
    same = KINDS["bytes"]
    assert ids_of_same_bytes(Retokenizer(same, same), len(same), len(same)) == {
        n: n for n in range(len(same))
    }
