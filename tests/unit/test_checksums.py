"""What a run wrote and does not find again as it was is refused, with the file and the way out."""

import json

import pytest

from kdcore import RunError
from kdcore.checksums import CHECKSUMS, damage, keep, refuse_changed


@pytest.fixture
def final(tmp_path):
    made = tmp_path / "run" / "final"
    made.mkdir(parents=True)
    for name in ("model.safetensors", "tokenizer.json", "README.md", "generation_config.json"):
        (made / name).write_bytes(name.encode() * 50)
    keep(made.parent, "final", made)
    return made


def flip(path, at=100):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_what_is_as_it_was_written_passes(final):
    assert damage(final) is None
    refuse_changed(final)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize(
    "harm, said",
    [
        (flip, "was changed"),
        (lambda path: path.write_bytes(b""), "has 0 bytes for "),
        (lambda path: path.write_bytes(path.read_bytes() * 2), " bytes for "),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_damage_is_refused_by_name(final, name, harm, said):
    harm(final / name)
    with pytest.raises(RunError, match=r"--fresh makes a new run.*copy the folder") as caught:
        refuse_changed(final)
    assert str(final / name) in str(caught.value) and said in str(caught.value)


def test_other_files_and_copies_are_free(final, tmp_path):
    (final / "README.md").write_text("mine")
    flip(final / "generation_config.json")
    (final / "new.txt").write_text("new")
    refuse_changed(final)
    copy = final.parent.rename(tmp_path / "moved") / "final"
    refuse_changed(copy)
    elsewhere = copy.rename(tmp_path / "elsewhere")
    flip(elsewhere / "model.safetensors")
    refuse_changed(elsewhere)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"final": 3}', '{"final": {"a": 1}}'])
def test_damaged_checksums_check_nothing_and_say_so(final, text, caplog, monkeypatch):
    (final.parent / CHECKSUMS).write_text(text)
    refuse_changed(final)
    assert CHECKSUMS in caplog.text


def test_folders_are_reported_apart(final):
    tokenizer = final.parent / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    keep(final.parent, "tokenizer", tokenizer)
    assert json.loads((final.parent / CHECKSUMS).read_text()).keys() == {"final", "tokenizer"}
    flip(tokenizer / "tokenizer.json", 0)
    assert damage(tokenizer) and damage(final) is None
