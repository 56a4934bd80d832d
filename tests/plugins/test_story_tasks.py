"""Tasks about the grammar's stories, and what the answers must be."""

import random

import chats
import tiny
from kdcore_stories import StoryTasks, facts, keeps_facts
from kdcore_stories.tasks import ask

TASKS = [ask(random.Random(n)) for n in range(400)]


def test_there_are_tasks_of_each_kind():
    asked = {task["instruction"].split(" ")[0] for task in TASKS}
    assert asked == {"Write", "Tell", "How", "What", "Who", "Say"}
    assert all(set(task) <= {"instruction", "input", "output"} for task in TASKS)


def test_stories_are_those_that_were_wished_for():
    wishes = [task for task in TASKS if task["instruction"].startswith(("Write", "Tell"))]
    for task in wishes:
        assert keeps_facts(task["output"])
        wished, included = facts(task["instruction"]), facts(task["output"])
        for fact in ("hero", "friend", "thing", "colour"):
            assert set(wished[fact]) == set(included[fact])


def test_endings_end_the_story():
    for task in TASKS:
        if task["instruction"] == "How does this story end?":
            assert keeps_facts(f"{task['input']}\n{task['output']}")


def test_answers_are_true():
    questions = [task for task in TASKS if task["instruction"].startswith(("What", "Who"))]
    assert len({task["instruction"].split(" ")[1] for task in questions}) == 3
    for task in questions:
        included = facts(task["input"])
        for fact, said in facts(task["output"]).items():
            assert set(said) <= set(included[fact])
        assert len(task["output"].split()) < 12


def test_only_the_colour_is_changed():
    for task in TASKS:
        if task["instruction"].startswith("Say"):
            new, old = facts(task["instruction"])["colour"]
            assert new != old and old in task["input"].replace(",", " ").replace(".", "").split()
            assert task["output"].replace(new, old) == task["input"].replace(new, old)
            assert task["output"] != task["input"]


def test_task_n_is_always_the_same():
    few, many = (list(StoryTasks(tasks=n).texts("train")) for n in (20, 50))
    assert many[:20] == few
    assert list(StoryTasks(seed=1, tasks=20).texts("train")) != few
    assert len(set(many)) == 50


def test_validation_has_other_tasks():
    train, validation = (set(StoryTasks().texts(split)) for split in ("train", "validation"))
    assert len(validation) > 190
    assert len(train & validation) < 10


def test_answers_alone_are_learned():
    tokenizer = tiny.byte_tokenizer(list(StoryTasks(tasks=50).texts("train")), 600)
    data = StoryTasks(tasks=30, rows="one", block=256)
    rows = data.make_rows("train", tokenizer, seed=0, epoch=0)
    assert len(rows) == 30 and max(rows.lengths) < 256
    for row, dialogue in zip(rows, data.dialogues("train"), strict=True):
        assert chats.learned(row, tokenizer) == [f"{dialogue.messages[1]['content']}<|end|>"]
