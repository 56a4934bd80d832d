"""A teacher with another tokenizer generates text, in the student's ids."""

import json
from types import SimpleNamespace

import chats
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from kdcore_aligned import Aligned
from kdcore_aligned.writing import continued
from kdcore_hf import HfTeacher
from kdcore_sft import DIALOGUE, Told

import kdcore
import kdcore.testing
from kdcore import Completion, Prompt, Retokenizer, Sampling, Teacher, component

OURS = chats.chat_tokenizer()
TEXT = "Once there was a small fox in 東京"
SAID = " who flew a naïve kite, 12:30"
letters = st.text(st.sampled_from("ab cé東🙂\n.1") | st.characters(exclude_categories=["Cs"]))


def theirs():
    made = tiny.byte_tokenizer(["of a wolf in a story, and so on"], 330, eos="</s>")
    made.add_special_tokens({"bos_token": "<s>"})
    made.chat_template = chats.LLAMA
    return made


THEIRS = theirs()


@component
class Says(Teacher):
    """Answers with a fixed text, in ids of its own."""

    name = "says"
    said: str = SAID
    finished: bool = True

    def __post_init__(self):
        self.asked = []

    def tokenizer(self):
        return THEIRS

    def writes(self):
        return True

    def generate(self, prompts, sampling):
        self.asked += [(THEIRS.decode(one.ids), one.seed, sampling) for one in prompts]
        ids = THEIRS.encode(self.said, add_special_tokens=False)
        ids += [THEIRS.eos_token_id] * self.finished
        return [Completion(tuple(ids), self.finished, source="teacher") for _ in prompts]


def loaded(teacher, ours=OURS, rows=()):
    made = Aligned(teacher=teacher)
    made.load(
        SimpleNamespace(
            tokenizer=ours,
            vocabulary=len(ours),
            device=tiny.CPU,
            data=SimpleNamespace(streams=False),
            recipe=SimpleNamespace(terms=[]),
            rows=lambda split: iter(rows),
        )
    )
    return made


def sampling(longest=64):
    return Sampling(longest, ends=frozenset({OURS.eos_token_id}), vocabulary=len(OURS))


def prompts_of(*texts):
    return [Prompt(tuple(OURS.encode(text)), seed=7 + n) for n, text in enumerate(texts)]


@pytest.mark.parametrize("finished", [True, False])
def test_texts_are_asked_and_answered_in_each_sides_ids(finished):
    within = Says(finished=finished)
    teacher = loaded(within)
    one, other = teacher.generate(prompts_of(TEXT, "and so"), sampling())
    assert [each[:2] for each in within.asked] == [(TEXT, 7), ("and so", 8)]
    assert within.asked[0][2].ends == {THEIRS.eos_token_id}
    assert within.asked[0][2].vocabulary == len(THEIRS)
    assert (one.finished, one.source, one.log_probs) == (finished, "teacher", None)
    expected = [*OURS.encode(SAID), *[OURS.eos_token_id] * finished]
    assert [*one.ids] == [*other.ids] == expected


def test_a_completion_is_cut_at_the_students_limit():
    (one,) = loaded(Says()).generate(prompts_of(TEXT), sampling(5))
    assert [*one.ids] == OURS.encode(SAID)[:5] and not one.finished


def test_a_prompt_that_ends_within_a_character_has_no_completion():
    within = Says()
    whole = OURS.encode("a 🙂")
    cut = Prompt(tuple(whole[:-1]), seed=0)
    one, other = loaded(within).generate([cut, *prompts_of(TEXT)], sampling())
    assert not one.ids and other.ids and len(within.asked) == 1


def test_a_completion_that_is_cut_within_a_character_keeps_the_whole_ones():
    class Cut(Says):
        def generate(self, prompts, sampling):
            ids = THEIRS.encode("a 🙂", add_special_tokens=False)[:-1]
            return [Completion(tuple(ids), False, source="teacher") for _ in prompts]

    (one,) = loaded(Cut()).generate(prompts_of(TEXT), sampling())
    assert OURS.decode(one.ids) == "a "


def test_dialogues_are_asked_in_the_teachers_template(tmp_path):
    record = chats.chat("Hello.", "Hi there!", "And who are you?", "A wolf.")
    (tmp_path / "records.jsonl").write_text(json.dumps(record))
    data = chats.Sft(path=str(tmp_path / "records.jsonl"), rows="one", block=160)
    data.asked_columns = frozenset({DIALOGUE})
    (row,) = data.make_rows("train", OURS, seed=0, epoch=0)
    columns, ids = row["columns"][0], row["input_ids"].tolist()
    first = Told.of(columns[DIALOGUE]).answers[1].first
    asked = Prompt(tuple(ids[:first]), 0, 0, columns, tuple(ids[first:]), exchange=-1)
    cut = Prompt(tuple(ids[2:first]), 0, 0, columns, tuple(ids[first:]), exchange=-1)
    within = Says()
    one, other = loaded(within, rows=[row]).generate([asked, cut], sampling())
    turns = record["messages"][:-1]
    rendered = THEIRS.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert [said for said, *_ in within.asked] == [rendered]
    assert [*one.ids] == [*OURS.encode(SAID), OURS.convert_tokens_to_ids("<|im_end|>")]
    assert not other.ids  # its dialogue was truncated: it cannot be rendered


@given(letters)
def test_continued_text_keeps_its_bytes(text):
    ours = tiny.byte_tokenizer()
    made = Retokenizer(ours, THEIRS)
    ids = continued(made, text)
    assert b"".join(made.our_bytes[each] for each in ids) == text.encode()


@given(st.text("abc d\n.1ou"))
def test_a_tokenizer_that_adds_a_space_adds_none_to_continued_text(text):
    made = Retokenizer(tiny.llama_tokenizer(), THEIRS)
    ids = continued(made, text)
    assert b"".join(made.our_bytes[each] for each in ids) == text.encode()


@pytest.mark.slow
def test_sequence_level_distillation_across_tokenizers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "theirs", tokenizer=THEIRS)
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = {
        "name": "written",
        "student": {"config": config},
        "tokenizer": {"use": "bpe", "vocab_size": 300},
        "data": {"use": "stories", "block": 48, "stories": 8},
        "teacher": {"use": "aligned", "teacher": {"use": "hf", "model": "theirs"}},
        "rollout": {"use": "teacher", "prompt_tokens": 8, "max_new_tokens": 12},
        "loss": [{"use": "ce"}],
        "train": {"lr": 1e-2, "steps": 2, "batch": 2, "log_every": 1},
    }
    result = kdcore.run(recipe)
    lengths = [line["rollout/length"] for line in result.metrics if line["loss"] is not None]
    assert len(lengths) == 2 and max(lengths) > 1
    kdcore.run(recipe | {"name": "again", "tokenizer": {"use": "bpe", "vocab_size": 290}})
    stores = [*(tmp_path / "runs" / "caches").glob("answers-teacher-*")]
    assert len(stores) == 2  # the ids in a store are those of one tokenizer


def test_it_writes_if_the_teacher_within_does():
    assert Aligned(teacher=HfTeacher(model="x")).writes()
    assert not Aligned(teacher=kdcore.testing.TableTeacher()).writes()
