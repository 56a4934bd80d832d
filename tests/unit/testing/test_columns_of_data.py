"""check_data looks at columns: their kinds, their names, and that they are the same again."""

import pytest

from kdcore import Data, component
from kdcore.testing import check_data


@component
class Labelled(Data):
    """Two documents with given columns."""

    name = "labelled"

    def documents(self, split):
        for n, columns in enumerate(self.given()):
            yield {"text": f"document {n} of {split}", "columns": columns}

    def column_names(self):
        return ["domain"]


def labelled(given):
    made = Labelled(block=32)
    made.given = given
    return made


def test_good_columns_pass():
    check_data(labelled(lambda: [{"domain": "math"}, {}]))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"domain": ["math"]}, "gives a list in the column 'domain'"),
        ({"level": 1}, "gives a column 'level' that column_names lacks"),
        ("math", "gives columns of type str"),
    ],
)
def test_others_are_reported(columns, said):
    with pytest.raises(AssertionError, match=said):
        check_data(labelled(lambda: [columns]))


def test_columns_that_change_are_reported():
    seen = []

    def given():
        seen.append(1)
        return [{"domain": f"{len(seen)}"}]

    with pytest.raises(AssertionError, match="gives other columns of 'train' when asked again"):
        check_data(labelled(given))
