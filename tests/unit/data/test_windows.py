"""Long texts in windows: the ids are those of the whole text."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdcore.data import windows
from kdcore.data.encoding import Encoder
from kdcore.data.windows import in_windows

pytestmark = pytest.mark.slow

SIZE, OVERLAP = 1500, 400  # small, so that a test of a few thousand characters has many borders

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(model, trainer, before=None, normalizer=None):
    made = Tokenizer(model)
    if before:
        made.pre_tokenizer = before
    if normalizer:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(tiny.TEXTS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def by_bytes(*split):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    before = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)]
    )
    return trained(models.BPE(), trainer, before)


def unigram():
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<|end|>"], unk_token="<unk>", show_progress=False
    )
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())


TOKENIZERS = {
    "GPT-2": by_bytes(),
    "Llama 3": by_bytes(pre_tokenizers.Split(Regex(LLAMA_3), "isolated")),
    "Llama 2": tiny.llama_tokenizer(),
    "Unigram": unigram(),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(windows, "_OVERLAP", OVERLAP)
    monkeypatch.setattr(windows, "_MARGIN", OVERLAP // 4)


def whole(text, tokenizer):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


ODD = [" ", "  ", "\n\n", "\t", "1234567", "…!?", "e\u0301", "東京都", "🦊", "a" * 30, "=" * 12]
WORDS = st.sampled_from(
    [*" ".join(tiny.TEXTS).split(), *ODD, "    " * 10, "\u00a0", "don't", "<|end|>"]
)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=30)
@given(words=st.lists(WORDS, min_size=20, max_size=60), joint=st.sampled_from([" ", ""]))
def test_the_ids_are_those_of_the_whole(name, words, joint):
    text = joint.join(words * 30)[:12000]
    tokenizer = TOKENIZERS[name]
    assert in_windows(text, tokenizer, size=SIZE).tolist() == whole(text, tokenizer)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["7" * 9001, "a" * 9000, " " * 9000, "ab" * 4500, "\n" * 9000])
def test_texts_without_a_safe_border_take_larger_windows(name, text):
    tokenizer = TOKENIZERS[name]
    found = in_windows("Once upon " + text + " a time.", tokenizer, size=SIZE)
    assert found.tolist() == whole("Once upon " + text + " a time.", tokenizer)


def test_no_call_is_much_longer_than_a_window():
    tokenizer, longest = TOKENIZERS["GPT-2"], 0
    text = " ".join(tiny.TEXTS * 200)

    def watched(some, **options):
        nonlocal longest
        longest = max(longest, len(some))
        return tokenizer(some, **options)

    assert in_windows(text, watched, size=SIZE).tolist() == whole(text, tokenizer)
    assert longest == SIZE < len(text) / 10


def test_an_encoder_cuts_what_is_long(monkeypatch):
    monkeypatch.setattr("kdcore.data.encoding.LONG", 2000)
    tokenizer = TOKENIZERS["GPT-2"]
    texts = ["short", " ".join(tiny.TEXTS * 50), "<|end|> " * 500, "", "last"]
    asked = []

    class Watched(type(tokenizer)):
        def __call__(self, some, **options):
            asked.extend([some] if isinstance(some, str) else some)
            return super().__call__(some, **options)

    expected = [tokenizer(t, add_special_tokens=False, split_special_tokens=True) for t in texts]
    expected = [each["input_ids"] + [0] for each in expected if each["input_ids"]]
    data = tiny.Lines()
    monkeypatch.setattr(tokenizer, "__class__", Watched)
    found = Encoder(data, tokenizer)(texts)
    assert found["ids"].tolist() == [n for each in expected for n in each]
    assert found["lengths"].tolist() == list(map(len, expected))
    assert found["ids"].dtype == found["lengths"].dtype == np.int32
    assert max(map(len, asked)) == 2000 < len(texts[1])
