"""A teacher with the student's tokenizer that is told something more than the student."""

import json

import chats
import pytest
import tiny
import torch
from kdcore_prompted import Prompted
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

import kdcore
from kdcore import RecipeError, RunError
from kdcore.testing import TableTeacher

pytestmark = pytest.mark.slow

TOKENIZER = chats.chat_tokenizer()
RECORDS = [
    chats.ask("What is 2 + 2?", "It is 4.", hint="Count it."),
    chats.ask("Where is the fox?", "In a den, of course.", hint="Look for <|im_end|> below."),
]
TEMPLATE = "{prompt} A hint: {hint} It was said: {answer}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("prompted")
    tiny.save(made / "student", tokenizer=TOKENIZER, vocabulary=len(TOKENIZER), seed=1)
    tiny.save(made / "teacher", tokenizer=TOKENIZER, vocabulary=len(TOKENIZER), seed=2)
    (made / "records.jsonl").write_text("\n".join(json.dumps(each) for each in RECORDS))
    texts = [{"text": "a fox in a den", "hint": "wolf"}, {"text": "so it goes", "hint": "on"}]
    (made / "texts.jsonl").write_text("\n".join(json.dumps(each) for each in texts))
    return made


def recipe(folder, use="sft", **more):
    path = str(folder / ("records.jsonl" if use == "sft" else "texts.jsonl"))
    data = {"use": use, "path": path, "validation": path, "keep_columns": ["hint"]}
    return {
        "name": "prompted",
        "student": {"model": str(folder / "student")},
        "data": data | {"block": 160, "rows": "one"},
        "teacher": {
            "use": "prompted",
            "teacher": {"use": "hf", "model": str(folder / "teacher")},
            "template": TEMPLATE if use == "sft" else "{hint}: ",
        },
        "loss": [{"use": "kl"}],
        "train": {"lr": 1e-9, "steps": 1, "batch": 2, "log_every": 1},
    } | more


def logs_of(folder, ids, count):
    """Of the last `count` tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -count - 1 : -1].log_softmax(-1)


def kl_by_hand(folder, pairs):
    """Of contexts of student and teacher, and the tokens behind both."""
    values = []
    for ours, theirs, ids in pairs:
        q, p = (
            logs_of(folder / name, [*context, *ids], len(ids))
            for name, context in (("student", ours), ("teacher", theirs))
        )
        values.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(values).mean())


def context_of(question):
    """A prompt's ids, in which special tokens that it spells out are text."""
    parts = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "@"}], add_generation_prompt=True, tokenize=False
    ).split("@")
    head, tail = (TOKENIZER(part, add_special_tokens=False)["input_ids"] for part in parts)
    return head + TOKENIZER(question, split_special_tokens=True)["input_ids"] + tail


def kl_of(table):
    (line,) = [each for each in kdcore.run(table).metrics if each["loss"] is not None]
    return line["loss/kl"]


def test_the_loss_is_that_of_both_contexts_by_hand(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = []
    for record in RECORDS:
        question, answer = record["instruction"], record["output"]
        prompted = TEMPLATE.format(prompt=question, answer=answer, hint=record["hint"])
        ids = [*TOKENIZER(answer)["input_ids"], TOKENIZER.eos_token_id]
        pairs.append((context_of(question), context_of(prompted), ids))
    assert kl_of(recipe(folder)) == pytest.approx(kl_by_hand(folder, pairs), rel=1e-4)


def test_of_texts_it_stands_before_the_document(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = []
    for text, hint in (("a fox in a den", "wolf"), ("so it goes", "on")):
        first, *ids = [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]
        pairs.append(([first], [*TOKENIZER(f"{hint}: ")["input_ids"], first], ids))
    found = kl_of(recipe(folder, use="text"))
    assert found == pytest.approx(kl_by_hand(folder, pairs), rel=1e-4)


def test_the_student_itself_with_an_empty_hint_agrees(folder, tmp_path, monkeypatch):
    """Self-distillation without a privilege: nothing is left to learn."""
    monkeypatch.chdir(tmp_path)
    table = recipe(folder, rollout={"use": "student", "max_new_tokens": 6})
    table["teacher"] = {"use": "prompted", "teacher": {"use": "self"}, "template": "{prompt}"}
    assert kl_of(table) == pytest.approx(0, abs=1e-6)
    table["teacher"]["template"] = "{answer} {prompt}"
    assert kl_of(table | {"name": "told"}) > 1e-4


def test_a_column_that_no_document_has_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = recipe(folder)
    table["teacher"]["template"] = "{solution}"
    with pytest.raises((RecipeError, RunError), match="no document has the column 'solution'"):
        kdcore.run(table)


@pytest.mark.parametrize(
    ("template", "said"),
    [("no column", "names no column"), ("{}", "names no column"), ("{a", "braces")],
)
def test_templates_that_name_no_column_are_refused(template, said):
    with pytest.raises(ValidationError, match=said):
        Prompted(teacher=TableTeacher(), template=template)
