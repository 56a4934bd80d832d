"""The text of each token: exact, whatever the tokenizer, and safe to print."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from kdcore.commands.rows.texts import exact_texts, visible

TOKENIZERS = {"bytes": tiny.byte_tokenizer(), "pieces": tiny.llama_tokenizer()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\ufffd")))
def test_joined_they_are_the_text(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts = exact_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


@given(ids=st.lists(st.integers(0, 299), max_size=30))
def test_ids_that_are_no_text_are_shown_as_they_are_decoded(ids):
    tokenizer = TOKENIZERS["bytes"]
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert "".join(exact_texts(tokenizer, ids)) == decoded


def test_a_letter_of_several_tokens_stands_at_the_last_of_them():
    tokenizer = tiny.byte_tokenizer(["nothing but latin letters"], 260)
    ids = tokenizer.encode("a東b", add_special_tokens=False)
    assert exact_texts(tokenizer, ids) == ["a", "", "", "東", "b"]
    assert exact_texts(tokenizer, ids[:3]) == ["a", "", "\ufffd"]  # a row that ends within it
    assert exact_texts(tokenizer, ids[3:]) == ["", "\ufffdb"]  # or begins there


def test_special_tokens_are_shown():
    tokenizer = tiny.llama_tokenizer()
    ids = [*tokenizer.encode("Once", add_special_tokens=False), tokenizer.eos_token_id]
    ids += tokenizer.encode("upon a", add_special_tokens=False)
    assert "".join(exact_texts(tokenizer, ids)) == "Once</s> upon a"


def test_nothing_that_steers_a_terminal_is_left():
    assert visible("a\x1b[31mb\x07\t\x7f\r\n") == "a␛[31mb␇␉␡␍\n"
    assert visible("\u200b\u202e\x9b東京\u3000é\xa0") == "\\u200b\\u202e\\u009b東京\u3000é\xa0"


@given(st.text())
def test_visible_text_is_printable(text):
    shown = visible(text).replace("\n", "").replace("\u3000", "")
    assert all(letter.isprintable() or letter.isspace() for letter in shown)
    assert not set(shown) & set(map(chr, range(0x20)))
