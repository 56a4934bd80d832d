"""Key paths are found in every way of writing TOML."""

import textwrap

import pytest
import tomli
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from kdcore.recipe.toml_positions import locate, places

pytestmark = pytest.mark.slow

EXAMPLE = textwrap.dedent(
    """\
    seed = 1  # [not.a.table]
    text = '''
    [loss]
    use = "no"
    '''
    quoted."a.b".'c' = 1
    [stage.one.teacher]
      use = "ensemble"
      members = [  # use = "x"
        {use = "hf", model = "a,b]}"},
        {
          use = "hf",
          options.deep = [1, [2, 3]],
        },
      ]
    [[loss]]
    use = "ce"
    [[loss]]
    TABuse = "kl"
    [loss.inner]
    key = 1979-05-27 07:32:00
    \""""
)[:-1].replace("TAB", "\t")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("seed",), (1, 1)),
        (("text",), (2, 1)),
        (("quoted",), (6, 1)),
        (("quoted", "a.b"), (6, 8)),
        (("quoted", "a.b", "c"), (6, 14)),
        (("stage",), (7, 2)),
        (("stage", "one"), (7, 8)),
        (("stage", "one", "teacher", "use"), (8, 3)),
        (("stage", "one", "teacher", "members", 0, "model"), (10, 18)),
        (("stage", "one", "teacher", "members", 1), (11, 5)),
        (("stage", "one", "teacher", "members", 1, "use"), (12, 7)),
        (("stage", "one", "teacher", "members", 1, "options", "deep", 1, 1), (13, 30)),
        (("loss",), (16, 3)),
        (("loss", 0, "use"), (17, 1)),
        (("loss", 1), (18, 3)),
        (("loss", 1, "use"), (19, 2)),
        (("loss", 1, "inner", "key"), (21, 1)),
        (("loss", 1, "inner", "missing", "deeper"), (20, 7)),
        (("loss", 7), (16, 3)),
        (("missing",), (1, 1)),
        ((), (1, 1)),
    ],
)
def test_every_way_of_writing_a_key(path, place):
    assert locate(EXAMPLE, path) == place


def test_strings_that_look_like_tables():
    text = 'a = """x""\n[b]\ny"""""\nc = \'\'\'\'q\'\'\'\'\'\nd = "\\"]\\\\"\ne = 1'
    assert tomli.loads(text)["e"] == 1
    assert set(places(text)) == {("a",), ("c",), ("d",), ("e",)}
    assert locate(text, ("e",)) == (6, 1)


def test_the_items_of_a_long_array_of_numbers_are_no_places_of_their_own():
    numbers = ", ".join(map(str, range(5000)))
    text = f"few = [1, 2]\nmany = [{numbers}]\nlast = 3"
    assert set(places(text)) == {("few",), ("few", 0), ("few", 1), ("many",), ("last",)}
    assert locate(text, ("many", 4000)) == (2, 1) and locate(text, ("last",)) == (3, 1)


def test_an_empty_text_has_no_places():
    assert places("") == {}
    assert locate("", ("a",)) == (1, 1)


keys = st.text(min_size=1, max_size=8)
scalars = st.one_of(
    st.integers(-(2**60), 2**60), st.booleans(), st.text(max_size=12), st.datetimes()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)
documents = st.dictionaries(keys, values, max_size=4)


def paths_of(value, path=()):
    if path:
        yield path
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in inner:
            yield from paths_of(each, (*path, key))


def starts_with_key(text, place, key):
    line = text.split("\n")[place[0] - 1][place[1] - 1 :]
    spelled = next(iter(tomli.loads(tomli_w.dumps({key: 0}))))
    for end in range(len(line), 0, -1):
        try:
            if tomli.loads(f"{line[:end]} = 0") == {spelled: 0}:
                return True
        except tomli.TOMLDecodeError:
            continue
    return False


@given(documents, st.booleans())
def test_any_key_is_found_where_it_stands(document, multiline):
    text = tomli_w.dumps(document, multiline_strings=multiline)
    for path in paths_of(tomli.loads(text)):
        assert path in places(text)
        if isinstance(path[-1], str):
            assert starts_with_key(text, locate(text, path), path[-1])


@given(documents, keys)
def test_an_unwritten_key_is_placed_at_its_nearest_parent(document, key):
    text = tomli_w.dumps(document)
    parsed = tomli.loads(text)
    for path in paths_of(parsed):
        assert locate(text, (*path, f"{key} is not written", 0)) == locate(text, path)


@given(st.lists(keys, min_size=1, max_size=6), st.sampled_from(["header", "dotted", "inline"]))
def test_any_nesting_of_keys_in_each_style(path, style):
    *outer, last = (tomli_w.dumps({key: 0}).rsplit(" = ", 1)[0] for key in path)
    dotted = ".".join([*outer, last])
    if style == "header" and outer:
        text, place = f"# x\n[{'.'.join(outer)}]\n  {last} = 0\n", (3, 3)
    elif style == "inline":
        opened = " = { ".join(outer)
        text = f"{opened} = {{ {last} = 0 {'} ' * len(outer)}" if outer else f"{last} = 0"
        place = (1, text.rindex(f"{last} = 0") + 1)
    else:
        text, place = f"# x\n{dotted} = 0\n", (2, len(dotted) - len(last) + 1)
    assert locate(text, tuple(path)) == place
