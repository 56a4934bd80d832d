"""How documents begin and end, and special tokens that they spell out."""

import logging

import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from kdcore import Data, RunError, component
from kdcore.data.encoding import Encoder, bos_of
from kdcore.data.rows import pack_texts
from kdcore.data.special import SpecialTokens
from kdcore.data.streaming import Place, stream_texts

MARK = "<|end|>"
PLACE = Place()


def adding(*beginning, bos=None, tokenizer=None):
    """A tokenizer that puts these before a text, and its eos behind it."""
    made = tokenizer or tiny.byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": [*beginning]} if beginning else {})
    if bos:
        made.add_special_tokens({"bos_token": bos})
    names = [*beginning, MARK]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*beginning, "$A", MARK]),
        special_tokens=[(name, made.convert_tokens_to_ids(name)) for name in names],
    )
    return made


def documents(tokenizer, lines=("Once upon", "a time"), rows="one", **options):
    data = tiny.Lines(lines=list(lines), rows=rows, **options)
    return [tokenizer.decode(row["input_ids"]) for row in pack_texts(data, "train", tokenizer)]


# ---- how they begin ---------------------------------------------------------------


def test_documents_begin_as_the_tokenizer_begins_a_text():
    assert documents(adding("<s>", bos="<s>")) == ["<s>Once upon<|end|>", "<s>a time<|end|>"]
    assert documents(adding("[g]", "<sop>")) == [
        "[g]<sop>Once upon<|end|>",
        "[g]<sop>a time<|end|>",
    ]


@pytest.mark.parametrize("bos", ["auto", False])
def test_no_bos_where_the_tokenizer_adds_none_or_it_is_off(bos):
    tokenizer = tiny.byte_tokenizer() if bos == "auto" else adding("<s>", bos="<s>")
    assert documents(tokenizer, bos=bos) == ["Once upon<|end|>", "a time<|end|>"]


def test_a_bos_that_the_tokenizer_has_and_does_not_add():
    tokenizer = adding(bos="<s>")
    assert documents(tokenizer)[1] == "a time<|end|>"
    assert documents(tokenizer, bos=True)[1] == "<s>a time<|end|>"
    with pytest.raises(RunError, match=r"no beginning-of-sequence token.* bos = false"):
        documents(tiny.byte_tokenizer(), bos=True)


def test_in_every_layout_each_document_begins_with_it():
    tokenizer, lines = adding("<s>", bos="<s>"), ["Once upon", "a time", "there was"]
    whole = "".join(f"<s>{line}<|end|>" for line in lines)
    for rows in ("pack", "chunk"):
        assert documents(tokenizer, lines, rows=rows, block=64) == [whole]
    length = len(tokenizer(whole, add_special_tokens=False)["input_ids"])
    pieces = documents(tokenizer, lines, rows="chunk", block=length // 2)
    assert len(pieces) > 1 and whole.startswith("".join(pieces))
    data = tiny.Lines(lines=lines, rows="pack", block=64)
    (window,) = [rows for _, rows in stream_texts(data, "train", tokenizer).windows(PLACE)]
    assert [tokenizer.decode(row["input_ids"]) for row in window] == [whole]


def test_it_is_never_there_twice():
    tokenizer = adding("<s>", bos="<s>")
    lines = ["<s>Once", "a time"]
    found = documents(tokenizer, lines, special_tokens="parse")
    assert found == ["<s>Once<|end|>", "<s>a time<|end|>"]


def test_a_run_is_reported_how_documents_begin(caplog):
    with caplog.at_level(logging.INFO, "kdcore"):
        documents(adding("<s>", bos="<s>"))
    assert "each begins with '<s>'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "kdcore"):
        documents(tiny.byte_tokenizer())
    assert "2 documents" in caplog.text and "begins" not in caplog.text


def test_a_fingerprint_tells_of_it_only_where_it_was_chosen():
    plain = tiny.Lines().fingerprint()
    assert "bos" not in plain and "special_tokens" not in plain
    assert "bos=False" in tiny.Lines(bos=False).fingerprint()
    assert "special_tokens='parse'" in tiny.Lines(special_tokens="parse").fingerprint()


# ---- special tokens that are spelled out ------------------------------------------


def test_what_a_document_spells_out_is_text(caplog):
    tokenizer = tiny.byte_tokenizer()
    lines = [f"The mark {MARK} ends it.", "Nothing of it."]
    with caplog.at_level(logging.WARNING, "kdcore"):
        data = tiny.Lines(lines=lines, rows="one")
        rows = [row["input_ids"].tolist() for row in pack_texts(data, "train", tokenizer)]
    as_text = tokenizer(lines, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert rows == [[*ids, 0] for ids in as_text]
    assert all(row.count(0) == 1 for row in rows)
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("train: 1 of 2 documents spell out special tokens, such as <|end|>")
    assert "they stay text" in said


def test_or_a_token_where_the_recipe_says_so(caplog):
    tokenizer = tiny.byte_tokenizer()
    with caplog.at_level(logging.WARNING, "kdcore"):
        data = tiny.Lines(lines=[f"a{MARK}b"], rows="one", special_tokens="parse")
        (row,) = pack_texts(data, "train", tokenizer)
    assert row["input_ids"].tolist().count(0) == 2
    assert "1 of 1 documents" in caplog.text and "they become tokens" in caplog.text


def test_what_was_tokenised_the_other_way_is_not_taken():
    tokenizer, line = tiny.byte_tokenizer(), f"a mark {MARK} twice"
    for special, count in (("parse", 2), ("text", 1), ("parse", 2)):
        data = tiny.Lines(lines=[line], rows="one", special_tokens=special)
        (row,) = pack_texts(data, "train", tokenizer)
        assert row["input_ids"].tolist().count(0) == count


def test_a_stream_tells_of_the_first(caplog):
    tokenizer = tiny.byte_tokenizer()
    data = tiny.Lines(lines=["nothing", f"one {MARK}", f"two {MARK}"], rows="one")
    with caplog.at_level(logging.WARNING, "kdcore"):
        (window,) = [rows for _, rows in stream_texts(data, "train", tokenizer).windows(PLACE)]
    assert [row["input_ids"].tolist().count(0) for row in window] == [1, 1, 1]
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("train: a document spells out special tokens, such as <|end|>")


def test_pieces_of_unigram_that_are_special_stay_text_too():
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator([*tiny.TEXTS * 20, "< / s >"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
    eos = tokenizer.eos_token_id
    text = "the end </s> of it"
    assert eos in tokenizer(text, split_special_tokens=True)["input_ids"]  # why there is a copy
    data = tiny.Lines(lines=[text, "Once"])
    found = Encoder(data, tokenizer)([text, "Once"])
    assert found["ids"].tolist().count(eos) == 2
    written = tokenizer.convert_ids_to_tokens(found["ids"][: found["lengths"][0] - 1])
    assert "".join(written).replace("▁", " ").split() == text.split()


def word_tokenizer(kind):
    """Its special tokens are words of its vocabulary."""
    special = ["<unk>", "</s>", "THE"]
    if kind == "words":
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    else:  # as Llama 3's, and with special tokens in the vocabulary
        made = Tokenizer(models.BPE(ignore_merges=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.BpeTrainer(
            special_tokens=special, initial_alphabet=list("</s>"), show_progress=False
        )
    made.train_from_iterator(tiny.TEXTS, trainer)
    named = {"eos_token": "</s>", "unk_token": "<unk>", "additional_special_tokens": ["THE"]}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


@pytest.mark.parametrize(("kind", "ids"), [("words", ["<unk>"]), ("bpe", ["<", "/", "s", ">"])])
def test_words_of_a_vocabulary_that_are_special_stay_text(kind, ids):
    tokenizer = word_tokenizer(kind)
    assert tokenizer.encode("</s>", split_special_tokens=True) == [1]  # why there is a copy
    encoder = Encoder(tiny.Lines(lines=["x"]), tokenizer)
    found = encoder(["</s>", "THE </s>"])["ids"].tolist()
    ids = tokenizer.convert_tokens_to_ids(ids)
    assert found == [*ids, 1, 2, *ids, 1]  # a word of letters is what the text means
    assert encoder.fingerprint().endswith(" words")
    parses = Encoder(tiny.Lines(lines=["x"], special_tokens="parse"), tokenizer)
    assert parses(["</s>"])["ids"].tolist() == [1, 1]
    assert not parses.fingerprint().endswith("words")


def test_letters_and_words_are_not_looked_for():
    special = SpecialTokens(tiny.byte_tokenizer())
    assert not special.letters
    assert not special.has_one("<| end |>") and special.has_one(f"x{MARK}")


def test_a_letter_that_only_a_special_token_has_stays_text():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["☃", "a"]})
    encoder = Encoder(tiny.Lines(lines=["x"]), tokenizer)
    ids = encoder(["☃ a"])["ids"].tolist()
    assert ids[:-1] == tokenizer.encode("☃ a", split_special_tokens=True, add_special_tokens=False)
    assert encoder.special.letters == {"☃"} and encoder.fingerprint().endswith(" words")


def test_special_tokens_that_stand_for_bytes_still_do_next_to_names():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((each, -1.0) for each in "ab<>/s▁")]
    pieces += [(f"<0x{n:02X}>", -9.0) for n in range(256)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True)),
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<0x0A>"],
    )
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    ids = Encoder(tiny.Lines(lines=["x"]), tokenizer)(["a\nb</s>"])["ids"].tolist()
    assert newline in ids and tokenizer.unk_token_id not in ids and ids.count(1) == 1


def test_data_of_others_begins_as_they_say():
    @component
    class Own(Data):
        name = "own"

        def texts(self, split):
            return iter(["a"])

    assert bos_of(Own(), adding("<s>", bos="<s>")) != []
    assert bos_of(Own(bos=False), adding("<s>", bos="<s>")) == []
