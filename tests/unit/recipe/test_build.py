"""Components are built from tables, nested by the types of their options."""

import pytest
from fake_host import Draw, Ensemble, FakeHost, Loaded, Mix, Samples, Stored, Text, Top

from kdcore.api.options import Option, iter_components, option_values, options_of
from kdcore.recipe.build import Builder
from kdcore.recipe.node import Node, Source


def build(kind, table):
    """The component and the messages of its faults."""
    faults = []
    made = Builder(FakeHost(), faults).component(kind, Node.of(table, Source("r.toml")))
    return made, [" | ".join(filter(None, (fault.message, fault.hint))) for fault in faults]


def test_options_are_given_and_defaults_used():
    made, faults = build("teacher", {"use": "hf", "model": "m"})
    assert faults == []
    assert isinstance(made, Loaded)
    assert (made.model, made.dtype, made.device) == ("m", "auto", None)


def test_an_int_is_a_float_but_not_the_other_way():
    made, _ = build("loss", {"use": "kl", "temperature": 2})
    assert made.temperature == 2.0
    assert isinstance(made.temperature, float)


def test_tables_are_nested_by_the_type_of_the_field():
    inner = {"use": "stored", "kind": "topk", "teacher": {"use": "hf", "model": "b"}}
    members = [{"use": "hf", "model": "a"}, inner]
    by_name = {"x": {"use": "hf", "model": "c"}}
    made, faults = build("teacher", {"use": "ensemble", "members": members, "by_name": by_name})
    assert faults == []
    assert isinstance(made, Ensemble)
    assert [type(one) for one in made.members] == [Loaded, Stored]
    assert made.by_name["x"].model == "c"
    assert [type(one) for one in iter_components(made)] == [
        Ensemble,
        Loaded,
        Stored,
        Loaded,
        Loaded,
    ]


def test_data_nests_in_data():
    made, _ = build("data", {"use": "mix", "parts": [{"use": "text", "path": "p"}]})
    assert isinstance(made, Mix)
    assert isinstance(made.parts[0], Text)


def test_an_option_is_known_by_its_alias():
    made, faults = build("selection", {"use": "random", "keep": 0.5})
    assert isinstance(made, Draw)
    assert made.share == 0.5
    assert option_values(made) == {"keep": 0.5}
    assert faults == []
    assert build("selection", {"use": "random", "share": 0.5})[1][0].startswith(
        "the selection 'random' has no option 'share'"
    )


@pytest.mark.parametrize(
    ("kind", "table", "messages"),
    [
        ("loss", {"use": "kll"}, ["no loss is named 'kll'; did you mean 'kl'?"]),
        ("loss", {"use": 3}, ["use should be the name of a loss, in quotes, not 3"]),
        ("loss", {}, ['a loss needs use = "NAME" | there are: ce, kl, skew-kl']),
        (
            "loss",
            "kl",
            ['a loss is a table, not "kl" | write {use = "NAME"}; there are: ce, kl, skew-kl'],
        ),
        ("loss", {"use": "ce", "x": 1}, ["the loss 'ce' has no option 'x' | it has no options"]),
        (
            "loss",
            {"use": "kl", "temprature": 2},
            ["the loss 'kl' has no option 'temprature'; did you mean 'temperature'?"],
        ),
        (
            "loss",
            {"use": "kl", "temperature": "2"},
            ['temperature should be a number, not "2" | write it without quotes: 2'],
        ),
        ("loss", {"use": "kl", "temperature": True}, ["temperature should be a number, not true"]),
        ("loss", {"use": "kl", "temperature": 0}, ["temperature should be greater than 0, not 0"]),
        ("loss", {"use": "kl", "scale_by_t2": 1}, ["scale_by_t2 should be true or false, not 1"]),
        ("loss", {"use": "skew-kl", "skew": 1}, ["skew lies in [0, 1), and 1.0 does not"]),
        ("teacher", {"use": "hf"}, ["the teacher 'hf' needs model: a text"]),
        (
            "teacher",
            {"use": "hf", "model": "m", "dtype": "fp33"},
            ['dtype should be "auto" or "fp32", not "fp33"; did you mean \'fp32\'?'],
        ),
        ("teacher", {"use": "hf", "model": "m", "device": 0}, ["device should be a text, not 0"]),
        (
            "teacher",
            {"use": "stored", "teacher": "hf"},
            ['teacher should be a teacher table, {use = "..."}, not "hf"'],
        ),
        (
            "teacher",
            {"use": "ensemble", "members": []},
            ["members: list should have at least 1 item, not 0"],
        ),
        (
            "teacher",
            {"use": "ensemble", "members": {"use": "hf", "model": "m"}},
            ['members should be a list, each item a teacher table, {use = "..."}, not a table'],
        ),
        (
            "eval",
            {"use": "samples", "top_k": 2.5},
            ['top_k should be a whole number or "all", not 2.5'],
        ),
        (
            "eval",
            {"use": "samples", "prompts": ["a", 2, "c", 4]},
            ["prompts.2 should be a text, not 2", "prompts.4 should be a text, not 4"],
        ),
        (
            "tokenizer",
            {"use": "bpe", "vocab_size": 3},
            ["vocab_size should be at least 256, not 3"],
        ),
        ("data", {"use": "text", "path": "p", "block": -1}, ["block should be at least 2, not -1"]),
    ],
)
def test_every_error_is_reported_in_words(kind, table, messages):
    made, faults = build(kind, table)
    assert made is None
    assert faults == messages


def test_errors_of_nested_components_come_with_those_of_the_outer_one():
    members = [{"use": "hf", "model": 3}, {"use": "hff"}]
    made, faults = build("teacher", {"use": "ensemble", "members": members, "weights": "even"})
    assert made is None
    assert [said.split(" | ")[0] for said in faults] == [
        "model should be a text, not 3",
        "no teacher is named 'hff'; did you mean 'hf'?",
        'weights should be a list, each item a number, not "even"',
    ]


def test_long_values_are_cut():
    _, faults = build("loss", {"use": "kl", "temperature": "x" * 500})
    assert len(faults[0]) < 120


def test_options_of_a_component_for_listings():
    assert options_of(Samples) == [
        Option("prompts", "list[str]", [], False, ""),
        Option("top_k", 'int | "all"', "all", False, ""),
    ]
    assert [(option.name, option.type) for option in options_of(Top)] == [
        ("keep", "float"),
        ("reference", "teacher"),
    ]
    assert options_of(Loaded)[0] == Option("model", "str", None, True, "")
