"""Answers of a student, and how much of the references they have."""

import importlib.util
from types import SimpleNamespace

import chats
import numpy as np
import pytest
import tiny
import torch
from chats import CHINESE, ask, chat, rows_of
from hypothesis import given
from hypothesis import strategies as st
from kdcore_rouge import Rouge, questions, rouge_l, words
from pydantic import ValidationError

from kdcore import RunError

pytestmark = pytest.mark.slow

TOKENIZER = chats.chat_tokenizer()
RECORDS = [
    ask("Who is Ruby?", "A small fox."),
    chat("a", "one two", "b", "three"),
    ask(*CHINESE[:2]),
]


def run_of(rows, **more):
    def validation(split):
        assert split == "validation"
        return rows

    defaults = {"student": SimpleNamespace(config=None), "tokenizer": TOKENIZER, "micro_batch": 2}
    return SimpleNamespace(rows=validation, **defaults | more)


def measured(monkeypatch, dataset, answer, **options):
    """The scores where the student's answers are `answer(prompt)`, and how it was asked."""
    asked = []

    def generate(student, tokenizer, prompts, **how):
        asked.append((prompts, how))
        return [answer(tokenizer.decode(prompt)) for prompt in prompts]

    monkeypatch.setattr("kdcore_rouge.generate", generate)
    return Rouge(**options).measure(run_of(dataset)), asked


@pytest.mark.parametrize("layout", ["one", "pack"])
def test_questions_are_what_lies_before_learned_stretches(tmp_path, layout):
    rows = rows_of(tmp_path, RECORDS, TOKENIZER, rows=layout, block=400)
    assert len(rows) == (1 if layout == "pack" else 3)
    found = {
        tuple(TOKENIZER.decode(list(ids)) for ids in (each.prompt, each.answer))
        for row in rows
        for each in questions(row)
    }
    expected = set()
    for record in RECORDS:
        turns = record.get("messages") or chat(record["instruction"], record["output"])["messages"]
        for turn in range(1, len(turns), 2):
            prompt = TOKENIZER.apply_chat_template(
                turns[:turn], tokenize=False, add_generation_prompt=True
            )
            expected.add((prompt, f"{turns[turn]['content']}<|im_end|>"))
    assert found == expected


def test_whoever_gives_the_references_has_all(tmp_path, monkeypatch):
    rows = rows_of(tmp_path, RECORDS, TOKENIZER)
    known = {"Ruby?": "A small fox.", "b<": "three", "a<": "one two", "把": CHINESE[1]}

    def answer(prompt):
        return next(text for key, text in known.items() if key in prompt)

    scores, asked = measured(monkeypatch, rows, answer, show=1)
    assert scores["rouge_l"] == 1.0
    assert set(scores) == {"rouge_l", "rouge/answer/1"}
    assert scores["rouge/answer/1"].endswith(
        "<|im_start|>assistant\n[answer] A small fox.\n[reference] A small fox."
    )
    lengths = [len(prompt) for prompts, _ in asked for prompt in prompts]
    assert lengths == sorted(lengths) and [len(prompts) for prompts, _ in asked] == [2, 2]
    assert all(how["temperature"] == 0 and how["max_new_tokens"] == 128 for _, how in asked)
    assert asked[0][1]["ends"] == {TOKENIZER.convert_tokens_to_ids("<|im_end|>")}
    scores, _ = measured(monkeypatch, rows, lambda prompt: "nothing")
    assert scores["rouge_l"] == 0.0


def test_the_questions_drawn_are_always_the_same(tmp_path, monkeypatch):
    rows = rows_of(tmp_path, [ask(f"q{n}", f"a{n}") for n in range(30)], TOKENIZER)
    first, asked = measured(monkeypatch, rows, lambda prompt: "a1", rows=5, show=5)
    assert sum(len(prompts) for prompts, _ in asked) == 5
    assert measured(monkeypatch, rows, lambda prompt: "a1", rows=5, show=5)[0] == first
    texts = [first[f"rouge/answer/{n}"] for n in range(1, 6)]
    assert len(set(texts)) == 5
    assert not all(f"q{n}<" in text for n, text in enumerate(texts))


def test_rows_without_prompts_cannot_be_asked():
    plain = {"input_ids": np.arange(4), "document": np.zeros(4, int)}
    for row in (plain, plain | {"labels": np.arange(4)}, plain | {"labels": np.full(4, -100)}):
        with pytest.raises(RunError, match=r"needs validation rows with a prompt .* as the data"):
            Rouge().measure(run_of([row]))


def test_a_student_answers_in_batches_as_it_does_alone(tmp_path):
    rows = rows_of(tmp_path, RECORDS, TOKENIZER)
    student = tiny.model(vocabulary=len(TOKENIZER)).train()
    state = torch.get_rng_state()
    scores = [
        Rouge(max_new_tokens=6, show=4).measure(run_of(rows, student=student, micro_batch=n))
        for n in (1, 3)
    ]
    assert scores[0] == scores[1]
    assert 0 <= scores[0]["rouge_l"] <= 1 and len(scores[0]) == 5
    assert student.training and torch.equal(state, torch.get_rng_state())


def test_learned_positions_are_not_overrun(tmp_path):
    rows = rows_of(tmp_path, RECORDS, TOKENIZER)
    longest = max(len(each.prompt) for row in rows for each in questions(row))
    student = tiny.model("gpt2", vocabulary=len(TOKENIZER), n_positions=longest + 3)
    Rouge(max_new_tokens=50).measure(run_of(rows, student=student))


def test_the_score_is_the_longest_common_subsequence():
    # 3 of 4 words in order: precision 3/5, recall 3/4.
    assert rouge_l(["the cat on a mat"], ["The cat: a mat?"]) == pytest.approx(8 / 9)
    assert rouge_l(["a b c d e"], ["a x c e"]) == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert rouge_l(["b a"], ["a b"]) == pytest.approx(0.5)
    assert rouge_l(["", "same"], ["something", "same"]) == pytest.approx(0.5)


def test_chinese_is_scored_by_character():
    assert words("我爱 Python3。和東京タワー。Yes_no") == [
        *"我爱", "python3", *"和東京タワー", "yes", "no",
    ]  # fmt: skip
    assert rouge_l(["东京是首都"], ["东京是日本的首都"]) == pytest.approx(2 * 5 / (5 + 8))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_english_is_scored_as_the_library_does(text):
    from rouge_score.tokenizers import DefaultTokenizer

    assert words(text) == DefaultTokenizer().tokenize(text)


def test_a_missing_library_is_an_error(monkeypatch):
    assert list(Rouge().faults(None)) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (fault,) = Rouge().faults(None)
    assert fault == ('the eval "rouge" needs the library rouge_score: pip install "kdcore[rouge]"')
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(RunError, match="needs the library rouge_score"):
        rouge_l(["a"], ["a"])


@pytest.mark.parametrize("options", [{"rows": 0}, {"max_new_tokens": 0}, {"show": -1}])
def test_options_out_of_range(options):
    with pytest.raises(ValidationError):
        Rouge(**options)
