"""A tokenizer trained on the training texts."""

import pytest
from kdcore_bpe import Bpe
from pydantic import ValidationError

from kdcore import Data, component


@component
class Lines(Data):
    name = "lines"

    def texts(self, split):
        if split != "train":
            raise AssertionError("tokenizers are trained on the train split only")
        return [f"the cat number {n} sat on the mat\n" * 3 for n in range(50)]


def trained(vocab_size=300):
    return Bpe(vocab_size=vocab_size).load(None, Lines())


def test_the_same_texts_give_the_same_tokenizer():
    first, second = trained(), trained()
    assert len(first) == 300
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_any_text_comes_back():
    tokenizer = trained()
    text = " the cat — 猫\t\r\n🐈 \x00 end  "
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer(" the cat")["input_ids"]) < len(" the cat")


def test_one_special_token_ends_and_pads():
    tokenizer = trained()
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.bos_token_id is None
    assert tokenizer("x")["input_ids"] == tokenizer("x", add_special_tokens=False)["input_ids"]


def test_it_comes_back_from_disk(tmp_path):
    from transformers import AutoTokenizer

    from kdcore import tokenizer_hash

    tokenizer = trained()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "the mat  sat, naïve\n\n on 12 cats.'s"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.eos_token, loaded.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    assert loaded.padding_side == "left"
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)


def test_a_vocabulary_holds_all_bytes():
    with pytest.raises(ValidationError, match="greater than or equal to 257"):
        Bpe(vocab_size=100)
