"""What changed of the public API since the last release is in the changelog, name by name."""

import re
import warnings
from pathlib import Path

import public_api

import kdcore
import kdcore.testing
from kdcore.deprecated import INTERNAL, RENAMED

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
KEPT = FIXTURES / "api-0.2.0.txt"  # of the last release
ONE_FOR_ALL = {"component_kind"}  # of each kind


def names(lines):
    """Each line's dotted name."""
    return {line.partition("(")[0] for line in lines}


def changed(before, after):
    """The dotted names of what is new, gone or takes other parameters; a class once, if whole."""
    whole = {line for line in before ^ after if re.fullmatch(r"\w+", line)}
    for line in names(before ^ after):
        owner, _, member = line.partition(".")
        if owner not in whole or not member:
            yield line


def section():
    """The names in backticks under "Plugin API" of what is not released."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased = text.partition("\n## Unreleased")[2].partition("\n## ")[0]
    return unreleased.partition("### Plugin API")[2].partition("\n### ")[0]


def test_every_change_has_a_line_in_the_changelog():
    before, after = set(KEPT.read_text().splitlines()), set(public_api.lines())
    said = section()
    missing = {
        name
        for name in changed(before, after)
        if not {name, *name.split(".")[-1:]} & {*RENAMED, *INTERNAL, *ONE_FOR_ALL}
        and not re.search(rf"\b{re.escape(name.split('.')[-1])}\b", said)
    }
    assert not missing, (
        "changed since 0.2.0, so CHANGELOG.md has to name them under Unreleased, Plugin API: "
        f"{', '.join(sorted(missing))}"
    )


def test_a_changed_signature_is_seen():
    lines = set(public_api.lines())
    other = {
        line.replace("Loss.per_token(self, student", "Loss.per_token(self, q") for line in lines
    }
    kinds = ("Loss", "PreparedLoss", "HiddenStatesLoss")
    assert {*changed(lines, other)} == {f"{kind}.per_token" for kind in kinds}
    assert {*changed(lines, lines - {"UsageError"})} <= {"UsageError"}


def test_every_name_of_0_1_0_still_works():
    lines = (FIXTURES / "api-0.1.0.txt").read_text(encoding="utf-8").splitlines()
    top = {name for name in names(lines) if "." not in name and not name.startswith("kdcore_")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        gone = {n for n in top if not (hasattr(kdcore, n) or hasattr(kdcore.testing, n))}
    assert gone == set()


def test_the_version_of_the_api_is_a_number_that_the_document_names():
    text = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
    assert f"`kdcore.API_VERSION` is {kdcore.API_VERSION}" in text
