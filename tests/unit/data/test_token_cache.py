"""Damaged token caches are told of by name and made anew; their tokens are the same again."""

from pathlib import Path

import pytest

from kdcore import Data, component
from kdcore.data import token_cache
from kdcore.data.tokenized import store_documents, tokenise

WORDS = [f"{'word' * (n % 5)} {n}" for n in range(300)]


@component
class Words(Data):
    name = "words"

    def texts(self, split):
        return WORDS


@pytest.fixture
def caches(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


HARMS = [("*.arrow", flipped), ("*.arrow", cut), ("*.arrow", emptied)]
HARMS += [("dataset_info.json", cut), ("dataset_info.json", emptied)]
HARMS += [("kdcore-fingerprint.txt", flipped)]


@pytest.mark.parametrize("name, harm", HARMS)
def test_damage_is_mended(caches, byte_tokenizer, name, harm, caplog):
    before = tokenise(Words(), "train", byte_tokenizer).fingerprint()
    (path,) = caches.rglob(name)
    harm(path)
    assert tokenise(Words(), "train", byte_tokenizer).fingerprint() == before
    assert "is damaged" in caplog.text and str(caches) in caplog.text
    caplog.clear()
    assert tokenise(Words(), "train", byte_tokenizer).fingerprint() == before
    assert caplog.text == ""


def test_a_cache_that_another_process_has_rebuilt_is_not_removed(caches):
    folder = token_cache._folder("k")
    folder.mkdir(parents=True)

    class Rebuilt:
        def checksum(self):
            return "sum"

    def opened():
        rebuilt = folder / "rebuilt"
        if not rebuilt.exists():
            rebuilt.touch()  # by another process, which has found the damage too
            raise ValueError("torn")
        return Rebuilt()

    assert isinstance(token_cache.verified(opened, "k"), Rebuilt)
    assert (folder / "rebuilt").exists()


def test_documents_of_ids_too(caches):
    rows = [{"input_ids": [1, 2, 3, n]} for n in range(50)]
    before = store_documents(Words(), "train", lambda: rows, "key").fingerprint()
    (path,) = caches.rglob("*.arrow")
    flipped(path)
    assert store_documents(Words(), "train", lambda: rows, "key").fingerprint() == before


def test_a_cache_of_an_earlier_version_is_used(caches, byte_tokenizer, caplog):
    before = tokenise(Words(), "train", byte_tokenizer).fingerprint()
    next(caches.rglob("kdcore-fingerprint.txt")).unlink()
    assert tokenise(Words(), "train", byte_tokenizer).fingerprint() == before
    assert caplog.text == ""


def test_a_refusal_of_the_machine_removes_nothing(caches, byte_tokenizer, monkeypatch):
    from kdcore.data import tokenized

    tokenise(Words(), "train", byte_tokenizer)
    (path,) = caches.rglob("*.arrow")

    def refused(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(tokenized, "stored", refused)
    with pytest.raises(PermissionError):
        tokenise(Words(), "train", byte_tokenizer)
    assert Path(path).exists()
