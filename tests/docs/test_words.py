"""The English of documentation, messages and comments: short sentences, and the field's words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from statistics import median

import pytest
from documents import DOCS, without_code

ROOT = DOCS.parent
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("kdcore", "plugins", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "kdcore_stories" not in path.parts and "tests" not in path.parts
)

# Grows until it has every page of docs/ that is not generated.
PAGES = [
    "../CHANGELOG.md",
    "../CONTRIBUTING.md",
    "../README.md",
    "../SECURITY.md",
    "after-the-run.md",
    "architecture.md",
    "coming-from.md",
    "command-line.md",
    "comparing.md",
    "data.md",
    "gpu.md",
    "hooks.md",
    "index.md",
    "large.md",
    "long-runs.md",
    "looking.md",
    "losses.md",
    "on-policy.md",
    "python.md",
    "recipe.md",
    "studies/divergences.md",
    "studies/selections.md",
    "studies/tinystories.md",
    "sweeps.md",
    "teachers.md",
    "what-is-trained.md",
    "writing-a-plugin.md",
    "your-model.md",
]
WORDS = re.compile(
    r"\b(told|laid|beside|nobody|everybody|anybody|go(?:es|ing)? on|without a word|faults?"
    r"|stands in|hangs on|is asked|lies in)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_uses_the_words_of_the_field(page):
    text = " ".join(without_code((DOCS / page).read_text(encoding="utf-8")).split())
    assert [text[max(0, at.start() - 40) : at.end() + 20] for at in WORDS.finditer(text)] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_short_sentences(page):
    text = without_code((DOCS / page).read_text(encoding="utf-8"))
    lengths = [len(re.findall(r"\w[\w'-]*", each)) for each in sentences(text)]
    assert lengths and median(lengths) <= 18 and max(lengths) <= 40


@pytest.mark.parametrize("source", SOURCES)
def test_code_uses_the_words_of_the_field(source):
    written = texts_of((ROOT / source).read_text(encoding="utf-8"))
    assert [text for text in written if WORDS.search(text)] == []


def texts_of(source: str) -> Iterator[str]:
    """Docstrings, messages and comments, without code in backticks; names of one word are none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = re.sub(r"`[^`]*`", "`", " ".join(node.value.split()))
            if " " in text:
                yield text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield re.sub(r"`[^`]*`", "`", token.string)


def test_texts_of_code_are_found():
    source = (
        'fault = "told"\n"""A `fault` is\nlaid."""\nprint("it goes "\n"on")  # of a `told` fault\n'
    )
    assert list(texts_of(source)) == ["A ` is laid.", "it goes on", "# of a ` fault"]


def sentences(text: str) -> list[str]:
    """What a page says in paragraphs and list items: headings and tables are none."""
    prose = re.sub(r"^(#.*|\|.*|!\[.*)$", "", text, flags=re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)  # the targets of links
    blocks = re.split(r"\n\s*\n|^\s*(?:[*-]|\d+\.) ", prose, flags=re.MULTILINE)
    ends = r"(?<=[.?!])[\"*_)\]]*\s+(?=[^a-z])"
    found = (" ".join(each.split()) for block in blocks for each in re.split(ends, block))
    return [each for each in found if " " in each]


def test_sentences_are_found_as_they_are_written():
    text = "# No. No\n\nOne of it. It ends `x`: e.g. so.\n* [A b](c.md). D e\n  f?\n\n| n | t |\n"
    assert sentences(text) == ["One of it.", "It ends `x`: e.g. so.", "[A b].", "D e f?"]


@pytest.mark.parametrize("said", ["It Goes\non with it", "no faults", "a key that nobody knows"])
def test_a_word_is_found(said):
    assert WORDS.search(" ".join(said.split()))


def test_a_default_is_no_error():
    assert not WORDS.search("the default stands on the go, one by one")
