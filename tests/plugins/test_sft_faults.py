"""Faults that scripts for instruction tuning are known for: `check_law` sees each of them.

Most stood in one script together: no header, prompt and answer encoded apart, answers cut away,
rows that learn nothing, padding told by its id.
"""

import chats
import numpy as np
import pytest
from chats import NAKED, QWEN, STRIPPING, ask, check_law, rows_of

TOKENIZER = chats.chat_tokenizer(pad="<|im_end|>")  # pad is eos, as people set it
RECORDS = [ask("Who is Ruby?", "A small fox."), ask(*chats.CHINESE[:2]), ask("Yes", "Yes")]
END = "<|im_end|>\n"


def row(prompt, answer):
    ids = np.array([*prompt, *answer])
    return {"input_ids": ids, "labels": np.array([-100] * len(prompt) + list(answer))}


def rendered(record, **options):
    turns = [{"role": "user", "content": record["instruction"]}]
    return TOKENIZER.apply_chat_template(turns, tokenize=False, **options)


def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def ours(record, folder):
    return rows_of(folder, [record], TOKENIZER)[0]


def no_generation_header(record, folder):
    """The answer follows the user's turn at once."""
    return row(encode(rendered(record)), encode(record["output"] + END))


def header_learned(record, folder):
    """The prompt ends where the user's turn does."""
    whole = ours(record, folder)
    prompt = len(encode(rendered(record)))
    ids = whole["input_ids"]
    return {"input_ids": ids, "labels": np.where(np.arange(len(ids)) < prompt, -100, ids)}


def first_answer_token_masked(record, folder):
    """Labels shifted against the mask."""
    made = ours(record, folder)
    made["labels"][np.argmax(made["labels"] != -100)] = -100
    return made


def padding_masked_by_id(record, folder):
    """Where pad is eos the end is never learned."""
    made = ours(record, folder)
    pad = TOKENIZER.pad_token_id
    made["labels"] = np.where(made["input_ids"] == pad, -100, made["labels"])
    return made


def padding_learned(record, folder):
    """Padded with eos, all of which is learned."""
    made = ours(record, folder)
    pads = [TOKENIZER.pad_token_id] * 4
    return {key: np.concatenate([values, pads]) for key, values in made.items()}


def answer_cut_away(record, folder):
    """The whole cut at the right, wherever that is."""
    made = ours(record, folder)
    return {key: values[:-8] for key, values in made.items()}


def everything_masked(record, folder):
    """The prompt alone fills the row."""
    made = ours(record, folder)
    first = int(np.argmax(made["labels"] != -100))
    return {key: values[:first] for key, values in made.items()}


def newline_after_the_end_learned(record, folder):
    made = ours(record, folder)
    made["labels"][-1] = made["input_ids"][-1]
    return made


def found_by_searching(record, folder):
    """The answer's words, where they stand first."""
    made = ours(record, folder)
    text = rendered(record, add_generation_prompt=True) + record["output"] + END
    prompt, _ = text.split(record["output"], 1)
    begin, length = len(encode(prompt)), len(encode(record["output"])) + 1
    at = np.arange(len(made["input_ids"]))
    within = (at >= begin) & (at < begin + length)
    return {**made, "labels": np.where(within, made["input_ids"], -100)}


FAULTS = [
    no_generation_header,
    header_learned,
    first_answer_token_masked,
    padding_masked_by_id,
    padding_learned,
    answer_cut_away,
    everything_masked,
    newline_after_the_end_learned,
    found_by_searching,
]


def test_rows_keep_the_law(tmp_path):
    check_law(rows_of(tmp_path, RECORDS, TOKENIZER), RECORDS, TOKENIZER, QWEN)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_law_sees(tmp_path, fault):
    rows = [fault(record, tmp_path) for record in RECORDS]
    with pytest.raises((AssertionError, StopIteration)):
        check_law(rows, RECORDS, TOKENIZER, QWEN)


def test_the_law_sees_prompt_and_answer_encoded_apart(tmp_path):
    tokenizer = chats.merging_tokenizer()
    record = ask("ok", "yes")
    (made,) = rows_of(tmp_path, [record], tokenizer)
    whole = tokenizer.encode("user:ok\nassistant:yes")
    apart = tokenizer.encode("user:ok\nassistant:") + tokenizer.encode("yes")
    assert apart != whole
    assert made["input_ids"].tolist() == [*whole, tokenizer.eos_token_id]


@pytest.mark.parametrize("template", [QWEN, STRIPPING, NAKED])
def test_rows_that_are_cut_still_learn_an_answer(tmp_path, template):
    """Cut at the right, these rows would have no label at all, and their mean would be NaN."""
    records = [ask("long " * 100, "A small fox."), ask("x", "")]
    (made,) = rows_of(tmp_path, records, TOKENIZER, template=template, block=48)
    assert chats.learned(made, TOKENIZER) == ["A small fox.<|im_end|>"]
    naive = encode("long " * 100)[:48]
    assert not set(made["labels"].tolist()) <= {-100, *naive}
