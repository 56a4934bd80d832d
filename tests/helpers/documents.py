"""The documentation as the tests read it: headings and fenced snippets."""

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its language, its text, and the heading that it stands under."""

    language: str
    text: str
    heading: str


def headings(name: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", _without_snippets((DOCS / name).read_text()), re.MULTILINE)


def snippets(name: str) -> list[Snippet]:
    found, heading, lines = [], "", iter((DOCS / name).read_text().splitlines())
    for line in lines:
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("```"):
            block = []
            while (inner := next(lines)) != "```":
                block.append(inner)
            found.append(Snippet(line[3:], "\n".join(block) + "\n", heading))
    return found


def without_code(text: str) -> str:
    """Markdown without fenced blocks, and with one word in place of each piece of inline code."""
    return re.sub(r"`+[^`\n]+`+", "CODE", _without_snippets(text))


def _without_snippets(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
