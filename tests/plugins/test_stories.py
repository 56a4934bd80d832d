"""The grammar's stories, what holds of them, and what a student makes of them."""

import random
from types import SimpleNamespace

import pytest
import torch
from kdcore_stories import Facts, Stories, facts, keeps_facts, tell

from kdcore.testing.fakes import tiny_llama

STORY = tell(random.Random(0))


def test_every_story_keeps_its_facts():
    assert all(keeps_facts(story) for story in Stories(stories=2000).texts("train"))


def test_a_story_is_whole():
    hero, friend, thing, colour = (
        facts(STORY)[fact][0] for fact in ("hero", "friend", "thing", "colour")
    )
    assert len(STORY.split("\n")) == 3
    assert f"{colour} {thing}" in STORY.split("\n")[2]
    assert f"the {friend}" in STORY
    assert "{" not in STORY
    assert STORY.count(hero) >= 2


@pytest.mark.parametrize("fact", ["hero", "friend", "thing", "colour"])
def test_a_changed_fact_is_noticed(fact):
    said = facts(STORY)[fact][0]
    other = next(
        facts(story)[fact][0] for story in Stories().texts("train") if facts(story)[fact][0] != said
    )
    changed = other.join(STORY.rsplit(said, 1))
    assert not keeps_facts(changed)
    assert keeps_facts(STORY.replace(said, other))


def test_a_story_must_come_back_to_its_facts():
    assert not keeps_facts(STORY.split("\n")[0])
    assert not keeps_facts("")


def test_story_n_is_always_the_same():
    few, many = (list(Stories(stories=n).texts("train")) for n in (20, 50))
    assert many[:20] == few
    assert list(Stories(seed=1, stories=20).texts("train")) != few
    assert len(set(many)) == 50


def test_validation_has_other_stories():
    train = set(Stories(stories=3000).texts("train"))
    validation = list(Stories(validation=300).texts("validation"))
    assert len(validation) == 300
    assert len(train.intersection(validation)) <= 3


def measured(monkeypatch, endings, **options):
    asked = {}

    def generate(student, tokenizer, prompts, **how):
        asked.update(prompts=prompts, **how)
        return [endings(prompt) for prompt in prompts]

    monkeypatch.setattr("kdcore_stories.generate", generate)
    run = SimpleNamespace(student=None, tokenizer=None, data=Stories(bos=False))
    scores = Facts(**options).measure(run)
    return scores, asked


def true_to(prompt):
    found = {fact: said[0] for fact, said in facts(prompt).items()}
    return "\nAnd {hero} gave the {colour} {thing} to the {friend}.".format(**found)


def test_true_endings_are_counted(monkeypatch):
    scores, asked = measured(monkeypatch, true_to, samples=30, temperature=0.5, seed=3)
    assert scores["facts"] == 1.0
    assert scores["story"] == asked["prompts"][0] + true_to(asked["prompts"][0])
    assert asked["temperature"] == 0.5
    assert asked["seed"] == 3
    assert len(asked["prompts"]) == 30


def test_false_endings_are_not_counted(monkeypatch):
    always = "\nAnd Ada gave the red ring to the crow."
    scores, _ = measured(monkeypatch, lambda prompt: always)
    assert scores["facts"] < 0.05


def test_first_sentences_are_in_no_split(monkeypatch):
    _, asked = measured(monkeypatch, true_to)
    train = {story.split("\n")[0] for story in Stories(stories=60).texts("train")}
    assert len(set(asked["prompts"])) > 95
    assert len(train.intersection(asked["prompts"])) <= 3


def test_a_student_is_measured_as_it_was(byte_tokenizer):
    student = tiny_llama(257).train()
    run = SimpleNamespace(student=student, tokenizer=byte_tokenizer, data=Stories())
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = Facts(samples=3, max_new_tokens=4).measure(run)
    assert first == Facts(samples=3, max_new_tokens=4).measure(run)
    assert first["facts"] == 0.0
    assert student.training
    assert torch.equal(before, torch.random.get_rng_state())
