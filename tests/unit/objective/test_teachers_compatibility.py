"""Teachers whose configs say that they cannot serve are refused before anything is loaded."""

import logging
from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import GPT2Config, LlamaConfig

from kdcore import RunError, Teacher, component
from kdcore.models.vocabulary import warn_tokenizer_mismatch
from kdcore.objective.teachers import check_positions, head_sizes
from kdcore.training.setup import prove_vocabulary


@component
class Configured(Teacher):
    """Says what it is, and has no weights."""

    name = "told"
    positions: int = 64
    width: int = 300

    def architecture(self, device):
        return LlamaConfig(vocab_size=self.width, max_position_embeddings=self.positions)


@component
class Silent(Teacher):
    name = "silent"


@component
class Older(Teacher):
    """A config that has another name for its positions."""

    name = "older"

    def architecture(self, device):
        return GPT2Config(vocab_size=300, n_positions=32)


def test_positions_that_reach():
    check_positions([Configured(), Silent(), Configured(positions=128)], tiny.CPU, 64)


@pytest.mark.parametrize(
    "teachers, number, reach", [([Silent(), Configured()], 2, 64), ([Older(), Configured()], 1, 32)]
)
def test_positions_that_do_not_reach(teachers, number, reach):
    said = rf"longer than the {reach} positions of the teacher '\w+' \({number}\); type --set data"
    with pytest.raises(RunError, match=said):
        check_positions(teachers, tiny.CPU, 65)


def test_widths_are_reported_where_they_are_known():
    widths = head_sizes([Silent(), Configured(width=310), Configured()], tiny.CPU)
    assert widths == {"teacher 'told' (2)": 310, "teacher 'told' (3)": 300}


def run_of(tokenizer, width):
    model = SimpleNamespace(width=width)
    return SimpleNamespace(tokenizer=tokenizer, language_model=model, device=torch.device("cpu"))


def test_logits_are_cut_to_the_narrowest_head(caplog):
    """Also where the teacher's tokenizer has all ids: what is above is in no text."""
    tokenizer = tiny.byte_tokenizer()
    size = len(tokenizer)
    assert tokenizer.eos_token_id < size - 2
    assert prove_vocabulary(run_of(tokenizer, size + 9), [Configured(width=size - 2)]) == size - 2
    assert prove_vocabulary(run_of(tokenizer, size + 9), [Configured(width=size + 2)]) == size


def test_a_head_that_cannot_end_a_text():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|last|>"})
    size = len(tokenizer)
    with pytest.raises(RunError, match=rf"head of the teacher 'told' \(1\) has {size - 1} rows"):
        prove_vocabulary(run_of(tokenizer, size), [Configured(width=size - 1)])
    assert prove_vocabulary(run_of(tokenizer, size), [Configured(width=size)]) == size


def habits(caplog, student, teacher):
    with caplog.at_level(logging.WARNING, "kdcore"):
        warn_tokenizer_mismatch(student, {"teacher 'told' (1)": teacher})
    return caplog.text


def tokenizer(**tokens):
    made = tiny.byte_tokenizer()
    for name, value in tokens.items():
        setattr(made, name, value)
    return made


def test_tokenizers_of_the_same_habits(caplog):
    assert habits(caplog, tokenizer(pad_token="a"), tokenizer(chat_template="{{ x }}")) == ""


@pytest.mark.parametrize(
    "ours, theirs, said",
    [
        ({"eos_token": "a"}, {}, "texts end with 'a' here, with '<|end|>' there"),
        ({"pad_token": "a"}, {"pad_token": "b"}, "the pad token is 'a' here, 'b' there"),
        ({"chat_template": "{{ x }}"}, {"chat_template": "{{ y }}"}, "the chat templates differ"),
    ],
)
def test_habits_that_differ_are_reported(caplog, ours, theirs, said):
    text = habits(caplog, tokenizer(**ours), tokenizer(**theirs))
    assert said in text and "teacher 'told' (1) uses other special tokens than the student" in text
