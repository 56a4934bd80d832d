"""Dialogues that are longer than a row: the prompt is cut before the answer."""

import logging

import chats
import pytest
from chat_templates import THOUGHTFUL
from chats import QWEN, ask, chat, data_of, learned, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcore import RunError

TOKENIZER = chats.chat_tokenizer()
LONG = " ".join(f"fox{n}" for n in range(60))
MARKS = len(TOKENIZER.apply_chat_template(chat("", "")["messages"])["input_ids"]) - 1


def text(row):
    return TOKENIZER.decode(row["input_ids"])


def length(words):
    return len(TOKENIZER.encode(words))


def question(row):
    return text(row).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_users_text_is_cut_and_all_else_kept(tmp_path, side):
    records = [ask(LONG, "A small fox."), ask("Who?", "Ruby.")]
    row, short = rows_of(tmp_path, records, TOKENIZER, block=MARKS + 40, cut=side)
    assert learned(row, TOKENIZER) == ["A small fox.<|im_end|>"]
    assert text(row).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert text(row).endswith("<|im_start|>assistant\nA small fox.<|im_end|>")
    kept = question(row)
    assert kept and (LONG.startswith(kept) if side == "right" else LONG.endswith(kept))
    assert MARKS + 35 < len(row["input_ids"]) <= MARKS + 40
    assert text(short).endswith("Ruby.<|im_end|>\n")


def test_of_the_prompts_texts_the_longest_is_cut(tmp_path):
    record = chat("Who is it?", "A fox.", system=LONG)
    (row,) = rows_of(tmp_path, [record], TOKENIZER, block=80)
    assert question(row) == "Who is it?"
    assert learned(row, TOKENIZER) == ["A fox.<|im_end|>"]


@pytest.mark.slow
def test_characters_are_not_cut_in_two(tmp_path):
    for block in range(MARKS + 10, MARKS + 30):
        for side in ("left", "right"):
            record = ask("🐻" * 30, "熊。")
            (row,) = rows_of(tmp_path, [record], TOKENIZER, block=block, cut=side)
            assert set(question(row)) <= {"🐻"}
            assert learned(row, TOKENIZER) == ["熊。<|im_end|>"]
            assert block - 4 <= len(row["input_ids"]) <= block


def test_a_whole_answer_is_worth_more_than_the_whole_prompt(tmp_path):
    answer = LONG[:100]
    header = length("<|im_end|>\n<|im_start|>assistant\n")
    block = header + length(f"{answer}<|im_end|>")  # no room for the other marks of the template
    (row,) = rows_of(tmp_path, [ask("Who?", answer)], TOKENIZER, block=block)
    assert learned(row, TOKENIZER) == [f"{answer}<|im_end|>"]
    assert text(row) == f"<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"


def test_of_an_answer_that_is_too_long_the_end_is_cut(tmp_path):
    block = MARKS * 4 + 20
    (row,) = rows_of(tmp_path, [ask("Who?", LONG * 4)], TOKENIZER, block=block)
    (found,) = learned(row, TOKENIZER)
    assert (LONG * 4).startswith(found) and "<|im_end|>" not in found
    assert question(row) == "Who?"
    assert len(row["input_ids"]) == block
    (row,) = rows_of(tmp_path, [ask(LONG, LONG * 4)], TOKENIZER, block=block)
    assert LONG.startswith(question(row)) and question(row)
    assert block * 0.7 < sum(row["labels"] != -100) <= block * 0.75 + 1


def test_a_row_of_two_tokens_learns_the_first_of_an_answer(tmp_path):
    (row,) = rows_of(tmp_path, [ask("Who?", "A fox.")], TOKENIZER, block=2)
    assert learned(row, TOKENIZER) == [TOKENIZER.decode(TOKENIZER.encode("A fox.")[:1])]


def test_the_last_exchanges_go_where_a_dialogue_does_not_fit(tmp_path):
    record = chat("one", "two", "three", LONG, "five", "six", system="zero")
    (row,) = rows_of(tmp_path, [record], TOKENIZER, block=100)
    assert learned(row, TOKENIZER) == ["two<|im_end|>"]
    assert "three" not in text(row)


def test_a_long_text_is_cut_before_exchanges_go(tmp_path):
    record = chat(LONG, "two", "three", "four")
    (row,) = rows_of(tmp_path, [record], TOKENIZER, block=100)
    assert learned(row, TOKENIZER) == ["two<|im_end|>", "four<|im_end|>"]
    assert "user\nthree<|im_end|>" in text(row)


def test_the_first_exchanges_go_where_the_last_answer_counts(tmp_path):
    record = chat("one", LONG, "three", "four", "five", "six", system="zero")
    (row,) = rows_of(tmp_path, [record], TOKENIZER, block=100, train_on="last")
    assert learned(row, TOKENIZER) == ["six<|im_end|>"]
    assert text(row).startswith("<|im_start|>system\nzero<|im_end|>\n<|im_start|>user\nthree")


def test_dialogues_without_an_answer_are_dropped(tmp_path):
    records = [ask("a", ""), ask("b", "  \n"), ask("c", "yes"), chat("d", "", "e", "no", "f", " ")]
    rows = rows_of(tmp_path, records, TOKENIZER)
    found = [learned(row, TOKENIZER) for row in rows]
    assert found == [["yes<|im_end|>"], ["no<|im_end|>"]]
    with pytest.raises(RunError, match=r"none of the 2 dialogues in the 'train' split .* to learn"):
        rows_of(tmp_path, records[:2], TOKENIZER)


def test_what_was_cut_and_dropped_is_said_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdcore")
    records = [ask(LONG, "A"), ask("b", ""), ask("c", LONG * 3), *[ask("d", "yes")] * 3]
    data = data_of(tmp_path, records, block=100)
    said = (
        "train: of 6 dialogues 2 were cut to 100 tokens, 1 of these in an answer; "
        "1 without an answer were left out"
    )
    for _ in range(2):  # the second time nothing is made, and it is told all the same
        caplog.clear()
        data.make_rows("train", TOKENIZER, seed=0, epoch=0)
        assert said in caplog.messages


def test_packed_rows_hold_whole_dialogues(tmp_path):
    records = [ask(f"Count {n}.", " ".join(map(str, range(n)))) for n in range(1, 30)]
    rows = rows_of(tmp_path, records, TOKENIZER, rows="pack", block=200)
    assert len(rows) < len(records)
    found = {answer for row in rows for answer in learned(row, TOKENIZER)}
    assert found == {f"{record['output']}<|im_end|>" for record in records}
    for row in rows:
        begins = row["position"] == 0
        assert (row["input_ids"][begins] == TOKENIZER.convert_tokens_to_ids("<|im_start|>")).all()


letters = st.text("abc 东🐻\n", max_size=60)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(letters, letters.filter(str.strip)), min_size=1, max_size=3),
    st.integers(2, 90),
    st.sampled_from(["left", "right"]),
    st.sampled_from(["all", "last"]),
)
def test_whatever_is_cut(tmp_path, exchanges, block, side, train_on):
    """Rows fit, learn the beginning of an answer or all of it, and no more than answers."""
    contents = [text for pair in exchanges for text in pair]
    options = {"block": block, "cut": side, "train_on": train_on}
    (row,) = rows_of(tmp_path, [chat(*contents)], TOKENIZER, **options)
    assert 2 <= len(row["input_ids"]) <= block
    assert row["labels"][0] == -100
    answers = [answer for _, answer in exchanges][-1 if train_on == "last" else 0 :]
    *whole, last = learned(row, TOKENIZER)
    assert [each.lstrip("\n") for each in whole] == [
        f"{answer}<|im_end|>".lstrip("\n") for answer in answers[: len(whole)]
    ]
    full = f"{answers[len(whole)]}<|im_end|>".lstrip("\n")
    assert full.startswith(last.lstrip("\n").rstrip("\ufffd"))
    if full != last.lstrip("\n"):
        assert not whole and len(row["input_ids"]) == block


def test_the_law_holds_for_rows_that_fit_exactly(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdcore")
    record = ask("Who?", "A fox.")
    whole = len(rows_of(tmp_path, [record], TOKENIZER)[0]["input_ids"])
    chats.check_law(rows_of(tmp_path, [record], TOKENIZER, block=whole), [record], TOKENIZER, QWEN)
    (row,) = rows_of(tmp_path, [record], TOKENIZER, block=whole - 1)
    assert text(row).endswith("Who?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>")
    assert "of 1 dialogues 0 were cut" in caplog.messages[-1]


def test_prompts_of_which_little_is_left_are_a_warning(tmp_path, caplog):
    records = [ask(LONG * 4, LONG[:200]), *[ask("Who?", "A fox.")] * 3]
    block = MARKS + length(LONG[:200]) + 6
    rows = rows_of(tmp_path, records, TOKENIZER, block=block)
    assert len(question(rows[0])) < 20
    (said,) = [each for each in caplog.records if "of their prompt" in each.getMessage()]
    assert said.levelname == "WARNING"
    assert said.getMessage() == (
        "train: 1 of 4 dialogues (25.0%) keep less than an eighth of the text of their prompt, as "
        f"there is no room for it: raise block (now {block}) in [data]"
    )
    caplog.clear()
    rows_of(tmp_path, records, TOKENIZER, block=block + length(LONG * 2))
    assert "of their prompt" not in caplog.text


def test_exchanges_go_with_the_calls_that_they_have(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": LONG},
        {"role": "assistant", "content": LONG},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "three"},
    ]
    options = {"template": THOUGHTFUL, "train_on": "last", "block": 90}
    (row,) = rows_of(tmp_path, [{"messages": turns}], TOKENIZER, **options)
    assert text(row).startswith("<|im_start|>user\ntwo")
    assert learned(row, TOKENIZER) == ["<think>\n\n</think>\n\nthree<|im_end|>"]
