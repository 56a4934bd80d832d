"""Cleaning rules for speech: subtitles and speaker labels. Functions from text to text."""

from __future__ import annotations

import re

from kdcore_babylm.rules import until_still

_LINES = re.MULTILINE
_TIME = r"\d?\d:\d\d(?::\d\d(?:[.,]\d{1,3})?)?"
_TIMING = re.compile(
    rf"^(?:\d+ *\n)?{_TIME} *--> *{_TIME}.*(?:\n|\Z)|^[\[(]?{_TIME}[\])]?(?:\n|\Z)"
    r"|\{(?:\\|[yY]:)[^{}\n]*\}",
    _LINES,
)
_MUSIC = re.compile("[\u2669-\u266c]+")
_SONG = re.compile(r"^(?:#+ +)+(.*?)[ #]*$", _LINES)
_HEARD = (
    "laugh|chuckl|giggl|applau|clap|sigh|sob|sniff|cough|gasp|groan|scream|cheer|whisper|shout|"
    "music|sing|ring|knock|inaudible|unintelligible|unclear|clears? throat"
)
_CUE = re.compile(
    rf"\[[^\[\]\n]{{0,80}}\]|^(- ?)?\([A-Z][A-Z .,'!-]+\)"
    rf"|\([A-Z][A-Z.,'!-]* [A-Z .,'!-]+\)|\((?i:{_HEARD})[\w ]{{0,20}}\)",
    _LINES,
)
_DASH = re.compile(r"^(?:[-\u2013\u2014]+ *)+(?=[^\W\d_]|[\"'(])", _LINES)
_WHOSE = "subtitle[sd]?|captions?|captioned|captioning|transcripts?|transcribed|translated|synced"
_CREDIT = re.compile(
    rf"\b(?:{_WHOSE}|synced and corrected|synchroni[sz]ed|ripped|encoded) by\b"
    r"|\bsync(?: and corrections)? by\b|\bopensubtitles\b|\bwww\.\w|\bhttps?://|(?m:^ *subtitles?:)"
)
_CHAT = re.compile(
    r"^(?:\*[A-Z0-9]{2,6}: *\t*)+|^(?:%[a-z]{2,5}|@[A-Z][A-Za-z ]*):.*(?:\n|\Z)", _LINES
)
_TURN = re.compile(r"^(?:[A-Z]:[ \t]+)+", _LINES)
_WHO = "Speaker|Man|Woman|Boy|Girl|Narrator|Interviewer|Student|Teacher|Professor|Audience|Voice"
_NAME = re.compile(
    rf"^(?:>>+ *)?(?:[A-Z][A-Z .'-]{{1,24}}|{_WHO})(?: ?#?\d{{1,2}})?: +(?=\S)|^>>+ *(?=\S)", _LINES
)
_SHOUTED = re.compile(r"^[^a-km-z\n]*l[^a-km-z\n]*$", _LINES)
# The letters first, then what must not precede them: this order makes the search fast.
_CAPITALS = re.compile(r"[A-Z](?<!\w.)(?:[A-Z]+l|l+[A-Z])[A-Zl]*\b")
_ALONE = re.compile(r"l(?<![\w'.-].)(?<!\d .)(?![\w'-]|\.\w)")
_SHORT = re.compile(
    r"l(?<![\w'].)(?='(?:m|ll|ve|d)\b|(?:[tsfn]|ts|sn|nto|nside|nstead|ndeed|magine)\b|[A-Z])"
)
_CREDIT_WORDS = (" by", "www.", "http", "subtitle")


def timing(text: str) -> str:
    """Remove times and formatting of subtitles; a time of day within a line stays."""
    return until_still(_TIMING, text)


def credits(text: str) -> str:
    """Remove lines of credits and download sites of subtitles."""
    return "\n".join(line for line in text.split("\n") if not _is_credit(line.lower()))


def music(text: str) -> str:
    """Remove music symbols; lyrics stay."""
    return until_still(_SONG, _MUSIC.sub("", text), r"\1")


def cues(text: str) -> str:
    """Remove sound cues: [door slams], (LAUGHS). Abbreviations (NATO) stay."""
    return until_still(_CUE, text, r"\1")


def dashes(text: str) -> str:
    """Remove the dash before a spoken line; one before a number stays."""
    return _DASH.sub("", text)


def chat_labels(text: str) -> str:
    """CHILDES: remove speakers (*CHI:), and all annotation lines (%act:, @Situation:)."""
    return until_still(_CHAT, text)


def turn_labels(text: str) -> str:
    """Switchboard: remove the caller's letter, as in "A: Hello"."""
    return _TURN.sub("", text)


def name_labels(text: str) -> str:
    """Remove the speaker's name in capitals or role, as in "JOHN: Hello" and ">> Hello"."""
    return until_still(_NAME, text)


def misread_i(text: str) -> str:
    """Correct l misread for I: "lN THE", "l'm", "lt is". Names such as Al stay."""
    before = ""
    while "l" in text and text != before:
        before = text
        text = _SHOUTED.sub(_with_i_if_shouted, text)
        for pattern in (_CAPITALS, _SHORT, _ALONE):
            text = pattern.sub(_with_i, text)
    return text


def _with_i(found: re.Match[str]) -> str:
    return found[0].replace("l", "I")


def _with_i_if_shouted(found: re.Match[str]) -> str:
    """Three capitals are not a name."""
    shouted = sum("A" <= letter <= "Z" for letter in found[0]) >= 3
    return _with_i(found) if shouted else found[0]


def _is_credit(line: str) -> bool:
    return any(word in line for word in _CREDIT_WORDS) and _CREDIT.search(line) is not None
