"""Recipes that nobody meant to write: whatever they hold, `check` ends with 0, or 2 and why."""

import copy
import datetime
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import tomli
import tomli_w
from fuzzing import PLAIN, STAGED, TAUGHT, a_world, cases, ended_cleanly, kdcore
from hypothesis import given
from hypothesis import strategies as st

from kdcore.api.options import kind_of, members, option_fields
from kdcore.api.student import StudentOptions
from kdcore.api.train_options import TrainOptions
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.files import shipped_recipes

pytestmark = pytest.mark.slow

TEXTS = [PLAIN, TAUGHT, STAGED, *(path.read_text() for path in shipped_recipes())]
WHOLE = [tomli.loads(text) for text in TEXTS]
NUMBERS = [0, 1, -1, 2, 7, 0.5, 1e-9, -0.0, 1e300, 2**31, 2**63, 10**400]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
NAMES = ["", " ", "x", "hf", "kl", "ce", "none", "auto", "@teacher", "@", "@@", "@x.y", "epoch"]
NAMES += ["\0", "\n", "'", '"', "..", "../../x", "/etc/passwd", "~", "~nobody", "é" * 300, "\ud7ff"]
DAYS = [datetime.date(2026, 1, 1), datetime.time(1, 2), datetime.datetime(2026, 1, 1, 1)]

words = sorted(
    {word for text in TEXTS for word in text.replace("=", " ").split() if len(word) < 30}
)
single = st.one_of(
    st.sampled_from([*NUMBERS, True, False]),
    st.sampled_from(NAMES),
    st.sampled_from(DAYS),
    st.sampled_from(words),
    st.integers(-9, 99),
    st.floats(),
    st.text(max_size=12).filter(lambda text: text.isprintable()),
)
names = st.sampled_from([*NAMES, *words]) | st.text(max_size=8)
keys = names.filter(lambda text: "\ud7ff" not in text)
values = st.recursive(
    single, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)


def places(value, path=()):
    """The path of each key and item."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from places(each, (*path, key))


def at(document, path):
    for key in path:
        document = document[key]
    return document


def changed(document, draw):
    """The document after one change somewhere in it."""
    found = list(places(document))
    if not found:
        return draw(st.dictionaries(keys, values, max_size=2))
    path = draw(st.sampled_from(found))
    parent, key = at(document, path[:-1]), path[-1]
    how = draw(st.sampled_from(["value", "value", "value", "gone", "more", "renamed", "other"]))
    if how == "value":
        parent[key] = draw(values)
    elif how == "gone":
        del parent[key]
    elif how == "more" and isinstance(parent, dict):
        parent[draw(keys)] = draw(values)
    elif how == "renamed" and isinstance(parent, dict):
        parent[draw(keys)] = parent.pop(key)
    else:  # what stands somewhere else, in this or in another recipe
        other = draw(st.sampled_from(WHOLE))
        parent[key] = copy.deepcopy(at(other, draw(st.sampled_from(list(places(other))))))
    return document


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        a_world(folder)
        yield


def checked(*arguments):
    return ended_cleanly(kdcore("check", *arguments), (0, 2))


@cases(700)
@given(st.sampled_from(WHOLE), st.data())
def test_changed_recipes(whole, data):
    document = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        document = changed(document, data.draw)
    Path("r.toml").write_text(tomli_w.dumps(document), encoding="utf-8", errors="replace")
    checked("r.toml")


@cases(250)
@given(st.sampled_from(TEXTS), st.data())
def test_bytes_that_were_a_recipe(text, data):
    written = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(written)))
        end = start + data.draw(st.sampled_from([0, 0, 1, 2, 20, len(written)]))
        written[start:end] = data.draw(st.binary(max_size=6) | st.sampled_from(PIECES))
    Path("r.toml").write_bytes(written)
    checked("r.toml")


PIECES = [
    *(b'"', b"'", b'"""', b"'''", b"[", b"[[", b"]", b"{", b"}", b"=", b".", b",", b"#", b"\\"),
    *(b"\r", b"\r\n", b"\n", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80"),
    *(b"[" * 3000, b"{a=" * 3000, b"a." * 3000, b"x" * 100_000, b"9" * 5000, b'"""' + b"a\n" * 999),
    *(b"1e999999", b"0x" + b"f" * 99, b"1979-13-45", b"\\u0000", b'"\\uD800"', b"'a' . 'b' = 1"),
]

addresses = st.lists(keys | st.integers(0, 3).map(str), max_size=5).map(".".join)
set_values = st.one_of(
    st.sampled_from(["", "[]", "{}", "{use='kl'}", "[{use='ce'}]", "'", "nan", "-", "1 # x", "\n"]),
    values.map(lambda value: tomli_w.dumps({"v": value})[4:].strip()),
    st.text(max_size=9),
)


def real(document):
    """How the command line names each place of a recipe."""
    return [
        ".".join(str(part + 1) if isinstance(part, int) else part for part in path)
        for path in places(document)
    ]


@cases(450)
@given(st.sampled_from(["plain.toml", "taught.toml", "staged.toml", "rho_qwen"]), st.data())
def test_changes_on_the_command_line(recipe, data):
    known = real(WHOLE[{"plain.toml": 0, "taught.toml": 1, "staged.toml": 2}.get(recipe, 1)])
    arguments = []
    for _ in range(data.draw(st.integers(1, 3))):
        address = data.draw(st.sampled_from(known) | addresses)
        equals = data.draw(st.sampled_from(["=", "=", "=", "=", "", " = ", "=="]))
        arguments += ["--set", f"{address}{equals}{data.draw(set_values)}"]
    if data.draw(st.integers(0, 5)) == 0:
        arguments += ["--log", data.draw(names)]
    checked(recipe, *arguments)


HOST = PluginManager()
COUNTS = [-1, 0, 1, 2, 3, 300, 10**6, 2**31, 2**63]
SHARES = [-1.0, 0.0, 1e-300, 0.1, 0.5, 1.0, 1.5, 2, 1e300, float("nan")]
PLACES = ["texts.txt", "chat.jsonl", "model", "missing", *NAMES]
PLAINLY = {bool: [True, False], int: COUNTS, float: SHARES, str: PLACES, object: [1, "x", True]}


def of_type(draw, annotation, depth):
    """A value that is of an option's type, in its range or not."""
    member = draw(st.sampled_from(members(annotation)))
    origin, arguments = get_origin(member) or member, get_args(member)
    if kind_of(member):
        return table_of(draw, kind_of(member), depth - 1)
    if origin is Literal:
        return draw(st.sampled_from(arguments))
    if origin is list:
        return [of_type(draw, (*arguments, str)[0], depth) for _ in range(draw(st.integers(0, 2)))]
    if origin is dict:
        return {draw(keys): of_type(draw, (*arguments, str, int)[1], depth)}
    if hasattr(member, "__pydantic_fields__"):
        return options_of(draw, member, depth)
    return draw(st.sampled_from(PLAINLY[origin]))


def options_of(draw, cls, depth):
    """Some of the options of a component, or of the engine's own, and all that are required."""
    fields = {name: field for name, (_, field) in option_fields(cls).items()}
    given = [name for name in fields if fields[name].is_required() or draw(st.integers(0, 3)) == 0]
    return {name: of_type(draw, fields[name].annotation, depth) for name in given}


def table_of(draw, kind, depth=2):
    """A table of a kind of component; too deep inside, one of nobody."""
    provided = HOST.provided(kind)
    use = draw(st.sampled_from(sorted(provided)))
    return {"use": use, **(options_of(draw, provided[use].cls, depth) if depth else {})}


def recipe_of(draw):
    lists = {"loss": "loss", "eval": "eval", "log": "logger"}
    tables = {key: table_of(draw, key) for key in ("data", "tokenizer", "teacher", "selection")}
    return {
        "student": options_of(draw, StudentOptions, 1),
        "train": options_of(draw, TrainOptions, 1),
        **{key: table for key, table in tables.items() if key == "data" or draw(st.booleans())},
        **{
            key: [table_of(draw, lists[key])]
            for key in lists
            if key == "loss" or draw(st.booleans())
        },
    }


@cases(200)
@given(st.data())
def test_recipes_made_of_all_options_there_are(data):
    Path("r.toml").write_text(tomli_w.dumps(recipe_of(data.draw)))
    checked("r.toml")


@cases(250)
@given(st.data(), st.sampled_from(["student", "train", "data", "loss", "teacher", "selection"]))
def test_recipes_with_one_table_made_up(data, key):
    made, document = recipe_of(data.draw), copy.deepcopy(WHOLE[1])
    if key in made:
        document[key] = made[key]
    Path("r.toml").write_text(tomli_w.dumps(document))
    checked("r.toml")
