"""Cleaning rules for any text, for markup and for print: functions from text to text.

Every rule is idempotent and never lengthens a text. Rules for speech are in `speech.py`;
`sources.py` assigns rules to sources.
"""

from __future__ import annotations

import html
import re
from html.entities import html5

_LINES = re.MULTILINE
_ODD_SPACES = re.compile(r"[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\u00ad\u200b\u2060\ufeff]")
_ODD_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SINGLE = re.compile(r"[\u2018-\u201b\u2032`\u00b4]")
_DOUBLE = re.compile(r"[\u201c-\u201f\u2033]|''")
_NAMES = (
    "a|abbr|b|big|blockquote|br|center|cite|code|dd|del|div|dl|doc|dt|em|font|gallery|h[1-6]|hr|i|"
    "img|ins|li|math|nowiki|ol|p|pre|q|s|small|span|strike|strong|sub|sup|table|tbody|td|th|tr|tt|"
    "u|ul|var"
)
_BREAK = re.compile(r"<br\b[^<>\n]{0,80}>", re.IGNORECASE)
_TAG = re.compile(
    rf"<!--(?:(?!-->).)*-->|</?(?:{_NAMES})\b[^<>]{{0,300}}>", re.IGNORECASE | re.DOTALL
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_BEFORE = re.compile(r" +(?=[.,;:!?](?![\w.,;:!?]))")
_APART = re.compile(r"(?<=\w) +(?=n't\b|'(?:s|m|re|ve|ll|d)\b)")
_BRACKETS = {"L": ("(", "[", "{"), "R": (")", "]", "}")}
_HEADING = re.compile(r"^ ?(?:= ?)+(?=[^=\s])(.+?)(?: ?=)+ ?$", _LINES)
_LINK = re.compile(
    r"\[\[(?:File|Image|Category):[^\[\]]*\]\]|\[\[(?:[^\[\]|\n]*\|)*([^\[\]|\n]*)\]\]"
    r"|\[(?:https?:)?//[^\s\[\]]*(?: ([^\[\]\n]*))?\]"
)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}")
_REFERENCE = re.compile(
    r"<ref\b[^<>]*/>|<ref\b[^<>]*>[^<>]*</ref>| ?\[(?:\d{1,3}|note \d+|edit|citation needed)\]",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^(?:[*#\u2022\u00b7]+ *|- +)+(?=[^\W\d_]|[\"'(])", _LINES)
_PAGE = re.compile(
    r"^(?:- ?)?(?:page |p\. ?)?\d{1,4}(?: ?-)?(?:\n|\Z)| ?\[(?:pg|page|p\.) ?\d+\]|\{\d{1,4}\}",
    _LINES | re.IGNORECASE,
)
_PICTURE = re.compile(
    r"\[(?:Illustration|Decoration|Blank Page|Transcriber's Note)[^\[\]]{0,800}\]", re.IGNORECASE
)
_ITALIC = re.compile(r"(?<!\w)_(?=[^\s_])((?:[^_\n]|\n(?!\n)){1,400})(?<!\s)_(?!\w)")
_CAPITALS = r"[A-Z][A-Z .,'-]{3,60}"
_NUMBERED = "CHAPTER|BOOK|PART|VOLUME|VOL|SECTION|ACT|SCENE|PSALM|LETTER|CANTO|LESSON|STAVE|NO"
_RUNNING = re.compile(
    rf"^(?:\d{{1,4}} +{_CAPITALS}|(?!(?:{_NUMBERED})\b){_CAPITALS} +\d{{1,4}})\.?(?:\n|\Z)", _LINES
)
_ORNAMENT = re.compile(r"^ ?(?:[*=_~#-] ?){3,}(?:\n|\Z)", _LINES)
_LICENCE_HEAD = re.compile(
    r"^(?:The )?Project Gutenberg\b.*(?:\n.*){0,120}?\n\*\*\* ?START OF TH(?:E|IS) PROJECT.*\n?"
    r"|^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG.*\n?",
    _LINES,
)
_LICENCE_TAIL = re.compile(
    r"^(?:End of (?:The |the )?Project Gutenberg.*\n+)?\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG"
    r".*\n?(?:(?:.*\n){0,500}?.*newsletter to hear about new eBooks.*\n?)?",
    _LINES,
)
_PRODUCED = re.compile(
    r"^(?:E-text prepared|Produced) by .*(?:\n(?!\n).*){0,4}?(?:Proofread|pgdp|gutenberg).*\n?",
    _LINES | re.IGNORECASE,
)
_BLANKS = re.compile(r"\n(?:[ \t]*\n){2,}")


def until_still(pattern: re.Pattern[str], text: str, by: str = "") -> str:
    """Replace until nothing matches, as a replacement can create new matches. `by` is shorter."""
    while (changed := pattern.sub(by, text)) != text:
        text = changed
    return text


def spaces(text: str) -> str:
    """Collapse tabs, non-breaking and other spaces to one space; none at the ends of lines.

    Every line ends in a newline. Invisible characters (soft hyphens, byte order marks) are removed.
    """
    text = _ODD_ENDS.sub("\n", _UNSEEN.sub("", text))
    text = re.sub(" {2,}", " ", _ODD_SPACES.sub(" ", text))
    return text.replace(" \n", "\n").replace("\n ", "\n").strip(" ")


def quotes(text: str) -> str:
    """Curly quotes, backticks and doubled single quotes become ' and "."""
    return _DOUBLE.sub('"', _SINGLE.sub("'", text))


def blank_lines(text: str) -> str:
    """At most one blank line in a row, and none at either end of the text."""
    return _BLANKS.sub("\n\n", text).strip("\n")


def tags(text: str) -> str:
    """Remove HTML tags and comments; <br> becomes a line break. Other angle brackets stay."""
    return until_still(_TAG, until_still(_BREAK, text, "\n")) if "<" in text else text


def entities(text: str) -> str:
    """Decode &amp; and other entities, doubly escaped ones too."""
    while "&" in text and (changed := _ENTITY.sub(_entity, text)) != text:
        text = changed
    return text


def joined(text: str) -> str:
    """Rejoin words and punctuation split by a tokenizer: "do n't stop !" becomes "don't stop!"."""
    return _APART.sub("", _BEFORE.sub("", text))


def brackets(text: str) -> str:
    """Treebank brackets -LRB- and -RRB- become parentheses."""
    for side, (round_, square, curly) in _BRACKETS.items():
        for letter, bracket in (("R", round_), ("S", square), ("C", curly)):
            text = text.replace(f"-{side}{letter}B-", bracket)
    return text


def headings(text: str) -> str:
    """Wiki headings, = = Title = =, become their titles."""
    return _HEADING.sub(r"\1", text)


def file_titles(text: str) -> str:
    """Remove headings that name a file instead of a text: = = = PG1342 = = =."""
    return re.sub(r"^ ?= = = \S+ = = = ?(?:\n|\Z)", "", text, flags=_LINES)


def links(text: str) -> str:
    """Wiki links become their visible text; images and categories are removed."""
    while "[" in text and (changed := _LINK.sub(_label, text)) != text:
        text = changed
    return text


def emphasis(text: str) -> str:
    """Remove the wiki's runs of quotes for bold and italics; apostrophes stay."""
    return re.sub("'{2,5}", "", text)


def templates(text: str) -> str:
    """Remove wiki templates and tables."""
    return until_still(_TEMPLATE, text)


def references(text: str) -> str:
    """Remove footnote marks and "citation needed" marks, with the content of <ref>."""
    return until_still(_REFERENCE, text)


def bullets(text: str) -> str:
    """Remove list markers at the start of a line."""
    return _BULLET.sub("", text)


def page_numbers(text: str) -> str:
    """Remove page numbers: alone on a line, or in brackets as [Pg 12]."""
    return until_still(_PAGE, text)


def illustrations(text: str) -> str:
    """Remove notes about illustrations, with their captions: [Illustration: ...]."""
    return until_still(_PICTURE, text)


def italics(text: str) -> str:
    """Remove underscores around words; those within names stay."""
    return until_still(_ITALIC, text, r"\1")


def running_heads(text: str) -> str:
    """Remove running heads, a title in capitals next to a page number; CHAPTER 12 stays."""
    return until_still(_RUNNING, text)


def ornaments(text: str) -> str:
    """Remove lines of stars, dashes and the like."""
    return _ORNAMENT.sub("", text)


def licence(text: str) -> str:
    """Remove Project Gutenberg's text before and after a book."""
    for pattern in (_LICENCE_HEAD, _LICENCE_TAIL, _PRODUCED):
        text = until_still(pattern, text)
    return text


def _entity(found: re.Match[str]) -> str:
    written = found[0]
    if written[1] == "#":
        return html.unescape(written)
    return html5.get(written[1:], written)


def _label(found: re.Match[str]) -> str:
    return found[1] or found[2] or ""
