"""The sources of the BabyLM corpora: their cleaning rules, and their document boundaries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from kdcore_babylm import rules, speech

Rule = Callable[[str], str]

_LONGEST = 1 << 20  # characters of a document, to bound memory
_TITLE = re.compile(r"^\s*= = = .* = = =\s*$")
_MARKUP = (rules.tags, rules.entities)
_CAPTIONS = (
    rules.quotes,
    *_MARKUP,
    speech.timing,
    speech.credits,
    speech.music,
    speech.cues,
    speech.dashes,
    speech.name_labels,
    speech.misread_i,
)
_PRINT = (rules.page_numbers, rules.running_heads, rules.ornaments, rules.italics)
_WIKI = (
    rules.references,
    *_MARKUP,
    rules.templates,
    rules.links,
    rules.emphasis,
    rules.headings,
    rules.bullets,
    rules.quotes,  # the wiki's own runs of quotes are removed by now
)


@dataclass(frozen=True)
class Source:
    """A source's rules, in order. Rules for spaces and blank lines apply to every source."""

    rules: tuple[Rule, ...]
    blank_lines_end_documents: bool = False

    def cleaned(self, text: str) -> str:
        """A document without anything its author or speaker did not write or say."""
        for rule in (rules.spaces, *self.rules, rules.spaces, rules.blank_lines):
            text = rule(text)
        return text

    def documents(self, lines: Iterable[str]) -> Iterator[str]:
        """What lies between titles (= = = X = = =), or between blank lines if these are borders.

        A title is the first line of its document. Documents that are too long are cut at a line
        end.
        """
        document, length = list[str](), 0
        for line in lines:
            blank = self.blank_lines_end_documents and not line.strip()
            if blank or length > _LONGEST or _TITLE.match(line):
                yield from _joined(document)
                document, length = [], 0
            document.append(line)
            length += len(line)
        yield from _joined(document)


UNKNOWN = Source((rules.quotes,))
"""What is safe anywhere."""

_CHILDES = Source((rules.quotes, speech.chat_labels, rules.file_titles, speech.cues, rules.joined))
_SIMPLE_WIKI = Source(_WIKI, blank_lines_end_documents=True)

SOURCES: Mapping[str, Source] = {
    "aochildes": _CHILDES,
    "bnc_spoken": Source(
        (rules.quotes, *_MARKUP, rules.file_titles, speech.name_labels, rules.joined),
        blank_lines_end_documents=True,
    ),
    "cbt": Source((rules.quotes, rules.brackets, rules.joined)),
    "childes": _CHILDES,
    "children_stories": Source((rules.quotes, *_MARKUP, *_PRINT)),
    "gutenberg": Source(
        (
            rules.quotes,
            rules.licence,
            rules.file_titles,
            rules.illustrations,
            rules.references,
            *_PRINT,
        )
    ),
    "open_subtitles": Source(_CAPTIONS),
    "qed": Source(_CAPTIONS),
    "simple_wiki": _SIMPLE_WIKI,
    "simple_wikipedia": _SIMPLE_WIKI,
    "switchboard": Source((rules.quotes, speech.turn_labels, speech.cues, rules.joined)),
    "wikipedia": Source(_WIKI),
}
"""By the name of its file. The corpora of 2023 have other names than the later ones."""


def _joined(lines: list[str]) -> Iterator[str]:
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield text
