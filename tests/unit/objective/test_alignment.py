"""Spans of two tokenisations: every byte in exactly one, none that could be finer."""

from itertools import pairwise

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
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


def normalised(normaliser):
    """A byte-level BPE that changes letters, as Claude's NFKC does."""
    made = tiny.byte_tokenizer(TEXTS, 330)
    made.backend_tokenizer.normalizer = normaliser
    return made


def unigram():
    """Sentencepiece's unigram with NFKC and a space before each text, as T5's."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def added_spaces():
    """Pieces without a space before a text and with runs of spaces added as tokens, as Gemma's."""
    made = tiny.llama_tokenizer([*TEXTS, "if a:   b    c  d"])
    made.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    made.add_tokens(["▁▁", "▁▁▁", "\n\n"])
    return made


KINDS = {
    "bytes": tiny.byte_tokenizer(TEXTS, 280),
    "more bytes": tiny.byte_tokenizer(TEXTS[::-1], 500, eos="</s>"),
    "composed": composed(),
    "compatible": normalised(normalizers.NFKC()),
    "lowered": normalised(normalizers.Lowercase()),
    "pieces": tiny.llama_tokenizer(TEXTS),
    "spaces": added_spaces(),
    "unigram": unigram(),
    "words": word_pieces(),
}
PAIRS = [(a, b) for a in ("bytes", "more bytes", "pieces", "spaces") for b in KINDS]
letters = st.lists(
    st.sampled_from(
        ["a", "b ", " ", "   ", "cé", "東", "🙂", "\u0301", "\n\n", ".1", "ﬁ", "½", "É"]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
).map("".join)


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


def cuts_of(teacher, spelled, text):
    """Each byte of a text that separates the teacher's tokens, by trying all of them."""
    found = teacher(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    for lead in (b"", b" "):
        if b"".join(spelled[n] for n in ids) == lead + text.encode():
            each = range(len(ids) + 1)
            return [max(len(b"".join(spelled[k] for k in ids[:n])) - len(lead), 0) for n in each]
    cuts = [0, len(text.encode())]
    for at in range(1, len(text)):
        for n in range(1, len(ids)):
            before = max(end for _, end in offsets[:n])
            if before == at and all(start >= at for start, _ in offsets[n:]):
                cuts.append(len(text[:at].encode()))
    return cuts


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
    cuts = cuts_of(teacher, made.other_bytes, whole)
    assert [start for start, _ in covered] == sorted({*cuts} & {*borders.tolist()})[:-1]
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


@pytest.mark.parametrize("bos", ["<s>", "</s>"])
def test_a_beginning_of_ours_stands_for_none_of_theirs(bos):
    """Not even where it is our end token too; the text behind it begins a document as before."""
    student = tiny.llama_tokenizer(TEXTS)
    student.bos_token = bos
    teacher = tiny.byte_tokenizer(TEXTS, 500)
    teacher.add_special_tokens({"bos_token": "<begin>"})
    post = processors.TemplateProcessing("<begin> $A", None, [("<begin>", teacher.bos_token_id)])
    teacher.backend_tokenizer.post_processor = post
    made, text = Retokenizer(student, teacher), "One day a fox"
    ids = [student.bos_token_id, *student.encode(text, add_special_tokens=False)]
    piece = made.piece([*ids, student.eos_token_id], whole=True)
    assert piece.ids == [*teacher.encode(text), teacher.eos_token_id]
    assert piece.spans.first[0] == 1 and piece.spans.end[-1] == len(ids) + 1


def test_what_the_other_side_does_not_read_is_in_no_span():
    student, teacher = KINDS["bytes"], KINDS["more bytes"]
    made = Retokenizer(student, teacher)
    batch = tiny.batch(
        [np.array([*student(text)["input_ids"], 0]) for text in TEXTS],
        [[(n, 0, len(student(text)["input_ids"]) + 1)] for n, text in enumerate(TEXTS)],
        vocabulary=len(student),
    )
    whole, cut = made(batch), made(batch, longest=9)
    assert cut.batch.input_ids.shape[1] == 9 < whole.batch.input_ids.shape[1]
    width = whole.batch.input_ids.shape[1]
    kept = [n for n, end in enumerate(whole.spans.other_end) if (end - 1) % width < 9]
    assert cut.spans.first.tolist() == whole.spans.first[kept].tolist()
    assert cut.batch.input_ids.equal(whole.batch.input_ids[:, :9])


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
