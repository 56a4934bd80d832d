"""The faults that `make faults` puts in still have their lines and their tests.

That each is noticed takes minutes, and is measured: benchmarks/robustness/faults.py.
"""

import ast
from pathlib import Path

import planted
import pytest
from planted_gpu import GPU_FAULTS

FAULTS = [*planted.FAULTS, *GPU_FAULTS]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_its_line_is_there_once_and_its_tests_are_there(fault):
    text = (ROOT / fault.file).read_text()
    faulty = fault.put_into(text)
    assert faulty != text
    ast.parse(faulty)
    for each in fault.tests.split():
        file, _, test = each.partition("::")
        assert test.partition("[")[0] in (ROOT / "tests" / file).read_text()


def test_there_are_many_and_no_two_alike():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25
    assert len({(fault.file, fault.line, fault.instead) for fault in FAULTS}) == len(FAULTS)


def test_a_line_that_is_gone_is_reported():
    with pytest.raises(LookupError, match="0 lines in"):
        FAULTS[0].put_into("nothing")
