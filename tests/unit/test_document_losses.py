import numpy as np
import pytest

from kdcore import RunError
from kdcore.document_losses import document_losses, path_of, read_document_losses

SUMS = np.array([[3, 9, 6.5], [0, 0, 0], [2, 4, 3.25]])
KEYS = np.array([11, 0, 12])


def test_documents_without_a_token_are_left_out_and_all_else_comes_back(tmp_path):
    losses = document_losses(SUMS, KEYS)
    losses.save(tmp_path, 7)
    found = read_document_losses(tmp_path, 7)
    assert found.document.tolist() == [0, 2] and found.nll.tolist() == [6.5, 3.25]
    assert found.tokens.tolist() == [3, 2] and found.bytes.tolist() == [9, 4]
    assert found.rows == losses.rows
    assert path_of(tmp_path, 7).stat().st_size < 500


def test_where_nothing_was_kept_there_is_none(tmp_path):
    assert read_document_losses(tmp_path, 7) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_file_is_named(tmp_path, content):
    document_losses(SUMS, KEYS).save(tmp_path, 7)
    path_of(tmp_path, 7).write_bytes(content)
    with pytest.raises(RunError, match=r"step-7\.safetensors is damaged"):
        read_document_losses(tmp_path, 7)


def test_the_same_text_in_other_tokens_is_the_same_text():
    losses = document_losses(SUMS, KEYS)
    other = SUMS.copy()
    other[0, 0] = 5
    others = document_losses(other, KEYS)
    assert losses.rows != others.rows and losses.same_text(others)
    other[0, 1] = 8
    assert not losses.same_text(document_losses(other, KEYS))
