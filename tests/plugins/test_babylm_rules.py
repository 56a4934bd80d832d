"""The rules of cleaning: what each must change, what it must leave, and the law for all of them."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kdcore_babylm import rules, speech
from kdcore_babylm.sources import SOURCES, UNKNOWN

CHANGED = {
    "spaces": [
        ("  one\u00a0two \t three \r\n\u2003four\ufeff", "one two three\nfour"),
        ("a soft\u00adhyphen", "a softhyphen"),
        ("one\u2028two", "one\ntwo"),
    ],
    "quotes": [
        ("\u201cIt\u2019s\u201d, he said", '"It\'s", he said'),
        ("`` Oh , '' said Alice", '" Oh , " said Alice'),
    ],
    "blank_lines": [("\n\none\n\n \n\ntwo\n", "one\n\ntwo")],
    "tags": [
        ('<b>bold</b> and <a href="x">a link</a>', "bold and a link"),
        ("one<br />two", "one\ntwo"),
        ("seen <!-- a <b>\n comment --> here", "seen  here"),
        ("<<b>i>nested", "nested"),
    ],
    "entities": [
        ("Tom &amp; Jerry &lt;3 &eacute; &#39;x&#x27;", "Tom & Jerry <3 é 'x'"),
        ("&amp;amp;quot;", '"'),
    ],
    "joined": [
        ("do n't stop , Alice 's cat !", "don't stop, Alice's cat!"),
        ("I 'm here . You 'll see", "I'm here. You'll see"),
    ],
    "brackets": [("-LRB- so -RRB- -LSB-", "( so ) [")],
    "headings": [
        ("= = = The Moon = = =\nIt is round.", "The Moon\nIt is round."),
        ("== History ==", "History"),
        (" = Homarus gammarus = ", "Homarus gammarus"),
    ],
    "file_titles": [("= = = PG1342 = = =\nIt is a truth", "It is a truth")],
    "links": [
        ("the [[Moon|the Earth's moon]] and [[Mars]]", "the the Earth's moon and Mars"),
        ("[[File:a.png|thumb|The [[sea]]]]Here", "Here"),
        ("see [http://example.org the page] [https://example.org]", "see the page "),
    ],
    "emphasis": [("'''Mars''' is ''red''", "Mars is red")],
    "templates": [
        ("{{Infobox|{{flag|UK}}}}Text", "Text"),
        ('{| class="wikitable"\n| 1 {{x}}\n|}\nText', "\nText"),
    ],
    "references": [
        ('So it is.[1] True.<ref name="a">A book</ref> Yes<ref name="a"/>', "So it is. True. Yes"),
        ("They won [citation needed].", "They won."),
    ],
    "bullets": [("* one\n** two\n- three\n\u2022 four", "one\ntwo\nthree\nfour")],
    "page_numbers": [
        ("of the\n- 12 -\nsea [Pg 13]and\n14", "of the\nsea" + "and\n"),
        ("one {21}", "one "),
        ("Page 7\ntwo", "two"),
    ],
    "illustrations": [
        ("[Illustration: The cat\nand the dog] They ran [Illustration]", " They ran "),
    ],
    "italics": [
        ("It was _his_ hat, _not\nhers_.", "It was his hat, not\nhers."),
    ],
    "running_heads": [
        ("went home\nTHE WHITE WHALE 112\nand slept", "went home\nand slept"),
        ("113 THE WHITE WHALE\nand slept", "and slept"),
    ],
    "ornaments": [("one\n* * * * *\ntwo\n-----\nthree", "one\ntwo\nthree")],
    "licence": [
        (
            "The Project Gutenberg EBook of A Book\n\nThis eBook is for\n"
            "*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\nOnce\n"
            "*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\nUpdated editions\n"
            "subscribe to our email newsletter to hear about new eBooks.\nAnother",
            "Once\nAnother",
        ),
        ("Once\n*** END OF THE PROJECT GUTENBERG EBOOK A ***\nLeft", "Once\nLeft"),
        ("Produced by A. Person and the Online Distributed\nProofreading Team\nOnce", "Once"),
    ],
    "timing": [
        ("12\n00:01:02,500 --> 00:01:04,000\nHello\n", "Hello\n"),
        ("{\\an8}Hello\n{y:i}you\n00:15\nthere", "Hello\nyou\nthere"),
    ],
    "credits": [
        ("Hello\nSubtitles by someone\nBye", "Hello\nBye"),
        ("Sync and corrections by n17t01\nwww.example.org\nHello", "Hello"),
        ("Transcribed by A\nTranslated by B\nHello", "Hello"),
    ],
    "music": [("\u266a La la la \u266a", " La la la "), ("# I walk the line #", "I walk the line")],
    "cues": [
        ("[door slams] Come in (LAUGHS)", " Come in "),
        ("(SIGHS) Well (laughing softly) yes (DOOR SLAMS)", " Well  yes "),
        ("- (GASPS) What?", "-  What?"),
    ],
    "dashes": [("- Who?\n-You.\n\u2014 Me?", "Who?\nYou.\nMe?")],
    "chat_labels": [
        ("*CHI:\tmore milk .\n*MOT: here\n*SI1:\tno", "more milk .\nhere\nno"),
        ("@Situation:\tat home\n*CHI:\tyes\n%act:\tlaughs", "yes\n"),
    ],
    "turn_labels": [("A:\tHello.\nB: Hi.", "Hello.\nHi.")],
    "name_labels": [
        ("JOHN SMITH: Hello\nSpeaker 2: Hi", "Hello\nHi"),
        (">> MAN: Yes\n>> No", "Yes\nNo"),
    ],
    "misread_i": [
        ("lN THE KlTCHEN", "IN THE KITCHEN"),
        ("l'm sure l will, and so would l.", "I'm sure I will, and so would I."),
        ("lt is. ls it? lf so, PRlNCE Al", "It is. Is it? If so, PRINCE Al"),
    ],
}
LEFT = {
    "spaces": ["one two\n\nthree"],
    "quotes": ['"It\'s", he said - \u00abnon\u00bb'],
    "blank_lines": ["one\n\ntwo\nthree"],
    "tags": ["a < b and c > d", "I <3 you", "an <unk> word", "Vector<int>"],
    "entities": ["Tom & Jerry; R&D", "&nosuchthing;", "fish &chips;"],
    "joined": ["It costs .5 or so ... really", "the 'Sun' and 'moon'", "He said, do not"],
    "brackets": ["-LR- and (so)"],
    "headings": ["a = b", "2 + 2 = 4", "=", "x = y ="],
    "file_titles": ["= = = The Moon = = =", "= = PG1 = ="],
    "links": ["an [aside] in a list[0]", "[ ]"],
    "emphasis": ["It's the dog's"],
    "templates": ["a {set} of {things}"],
    "references": ["as he [sic] said in [1984]", "x[i]"],
    "bullets": ["#1 in May", "-5 degrees", "2 * 3", "well-known"],
    "page_numbers": ["In 1984\nit began", "12 monkeys", "X.\n10,000"],
    "illustrations": ["An illustration [of a cat]"],
    "italics": ["a snake_case_name", "5_000", "an _ alone"],
    "running_heads": ["CHAPTER 12", "BOOK 2\nVOL. 3", "In 12 DAYS", "THE END"],
    "ornaments": ["a * b * c", "- - yes", "**"],
    "licence": ["He read from Project Gutenberg.", "*** START ***"],
    "timing": ["Come at 10:15 today", "12\nmonkeys", "the {set}"],
    "credits": ["I read the subtitles aloud.", "what a caption says"],
    "music": ["#1 fan", "C sharp is C#", "notes"],
    "cues": ["the alliance (NATO) said", "he (my brother) left", "an open [ bracket"],
    "dashes": ["-5 degrees", "well-known", "wait - what"],
    "chat_labels": ["a *star*: here", "@home", "100%sure: yes", "*emphasis*"],
    "turn_labels": ["Plan A: go", "a: b", "Note: this"],
    "name_labels": ["Note: this", "At 10: go", "The plan: go", "x >> y"],
    "misread_i": ["Al and Bill sell all", "5 l of milk", "l'homme", "an l-shaped room", "HELLO"],
}
ALL = {
    name: rule
    for module in (rules, speech)
    for name, rule in inspect.getmembers(module, inspect.isfunction)
    if rule.__module__ == module.__name__ and not name.startswith("_") and name != "until_still"
}
PIECES = st.sampled_from(
    [piece for pairs in CHANGED.values() for before, _ in pairs for piece in before.split(" ")]
    + [piece for texts in LEFT.values() for text in texts for piece in text.split(" ")]
    + ["_", "*", "=", "[", "]", "]]", "{{", "|", "}}", "<", ">", "&", ";", "'", "-", "l", "#"]
)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text("al IAL.,'`\"_*=[]{}|<>&;:#-()\n\t5\u266a\u2019", max_size=60),
    st.lists(st.tuples(PIECES, st.sampled_from(["", " ", "\n"])), max_size=12).map(
        lambda pairs: "".join(piece + gap for piece, gap in pairs)
    ),
)


def test_every_rule_has_both_tests():
    assert CHANGED.keys() == LEFT.keys() == ALL.keys()


def test_every_rule_is_used_by_a_source():
    used = {rule for source in SOURCES.values() for rule in source.rules}
    assert {rule.__name__ for rule in used} | {"spaces", "blank_lines"} == ALL.keys()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [(name, *pair) for name, pairs in CHANGED.items() for pair in pairs],
)
def test_changes(name, before, after):
    assert ALL[name](before) == after


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in LEFT.items() for text in texts]
)
def test_leaves(name, text):
    assert ALL[name](text) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@given(text=TEXTS)
def test_once_is_enough_and_nothing_grows(name, text):
    once = ALL[name](text)
    assert len(once) <= len(text)
    assert ALL[name](once) == once


@given(text=TEXTS)
def test_no_source_stumbles(text):
    for source in (*SOURCES.values(), UNKNOWN):
        assert len(source.cleaned(text)) <= len(text)
