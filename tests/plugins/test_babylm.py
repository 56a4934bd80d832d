"""The BabyLM corpora: files, documents, cleaning told, cuts that move, and what BPE sees."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from kdcore_babylm import BabyLM, kdcore_data
from kdcore_babylm.corpora import source_of
from kdcore_babylm.sources import SOURCES, UNKNOWN
from kdcore_bpe import Bpe
from pydantic import ValidationError

from kdcore import RunError
from kdcore.data.rows import pack_texts
from kdcore.data.sampler import random_subset

WORDS = "the cat sat on a mat and saw the small red fox run home again"


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return str(folder)


def train(path, **options):
    return list(BabyLM(path=path, **options).texts("train"))


def validation(path, **options):
    return list(BabyLM(path=path, **options).texts("validation"))


@pytest.fixture
def corpus(tmp_path):
    """Folders as the challenge has them."""
    path = write(
        tmp_path / "train_10M",
        childes__train="= = = Eng/Ada/1.cha = = =\n*CHI:\tmore milk .\n*MOT:\there !\n"
        "= = = Eng/Ada/2.cha = = =\n*CHI:\tno [points] .\n",
        simple_wiki__train="= = = Moon = = =\nIt is <b>round</b>.\nIt is far.\n\n"
        "= = = Mars = = =\n* '''Red'''\n\n",
        open_subtitles__train="- lt's me.\n\u266a La la \u266a\nSubtitles by X\n",
    )
    held = write(tmp_path / "dev", childes__dev="*CHI:\tbye bye .\n")
    return SimpleNamespace(path=path, validation=held, folder=tmp_path)


def test_hook_kdcore_data():
    assert [data.name for data in kdcore_data()] == ["babylm"]


def test_documents_are_what_the_files_say_cleaned_by_source(corpus):
    assert train(corpus.path) == [
        "more milk.\nhere!",
        "no.",
        "It's me.\nLa la",
        "Moon\nIt is round.\nIt is far.",
        "Mars\nRed",
    ]
    assert validation(corpus.path, validation=corpus.validation) == ["bye bye."]


def test_without_cleaning_the_files_are_left_as_they_are(corpus):
    raw = train(corpus.path, clean=False)
    assert raw[1] == "= = = Eng/Ada/2.cha = = =\n*CHI:\tno [points] ."
    assert raw[2] == "- lt's me.\n\u266a La la \u266a\nSubtitles by X"


def test_blank_lines_end_documents_only_where_they_do():
    talk = ["one", "", "two", " ", "= = = x = = =", "three"]
    assert list(SOURCES["bnc_spoken"].documents(talk)) == ["one", "two", "= = = x = = =\nthree"]
    assert list(SOURCES["qed"].documents(talk)) == ["one\n\ntwo\n ", "= = = x = = =\nthree"]


def test_long_documents_are_cut_at_the_end_of_a_line():
    line = "x" * 1000
    parts = list(UNKNOWN.documents([line] * 3000))
    assert [len(part.split("\n")) for part in parts] == [1049, 1049, 902]


def test_a_summary_tells_each_sources_characters_once(corpus, caplog):
    caplog.set_level(logging.INFO, logger="kdcore")
    data = BabyLM(path=corpus.path)
    for _ in range(2):
        list(data.texts("train"))
    (said,) = caplog.messages
    assert said.startswith("train: characters before and after cleaning: childes 101 -> 19, ")
    assert "open_subtitles" in said and "simple_wiki" in said
    caplog.clear()
    train(corpus.path, clean=False)
    assert not caplog.messages


def test_an_unknown_source_is_cleaned_with_care_and_reported(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="kdcore")
    path = write(tmp_path, tales__txt="A: \u201clN\u00a0\u201d  <b>\n\n\n\n- x")
    assert train(path) == ['A: "lN " <b>\n\n- x']
    assert "no rules are known for 'tales'" in caplog.messages[1]
    assert "spaces, quotes and blank lines" in caplog.messages[1]


@pytest.mark.parametrize(
    "name, source",
    [
        ("aochildes.train", "aochildes"),
        ("simple_wiki.train.txt", "simple_wiki"),
        ("Simple-Wikipedia.dev", "simple_wikipedia"),
        ("cbt.txt", "cbt"),
    ],
)
def test_sources_are_known_by_the_names_of_files(tmp_path, name, source):
    assert source_of(tmp_path / name) == source
    assert source in SOURCES


def test_endings_tell_the_splits_of_one_folder(tmp_path):
    path = write(
        tmp_path,
        cbt__train="one",
        cbt__dev="two",
        cbt__test__txt="three",
        README__txt="no text",
        notes__md="none either",
    )
    assert train(path) == ["one"]
    assert validation(path) == ["two"]
    assert validation(path, validation="test") == ["three"]
    assert validation(path, validation=path) == ["two"]
    assert train(str(tmp_path / "cbt.train")) == ["one"]
    (tmp_path / "cbt.dev").unlink()
    assert validation(path) == ["three"]
    (tmp_path / "cbt.train").unlink()
    with pytest.raises(RunError, match=r"has no \.train files: it has cbt\.test\.txt"):
        train(path)


def test_files_without_endings_are_of_any_split(tmp_path):
    path, held = write(tmp_path / "10M", cbt__txt="one"), write(tmp_path / "dev", cbt__txt="two")
    assert (train(path), validation(path, validation=held)) == (["one"], ["two"])
    with pytest.raises(RunError, match=r"nothing to validate on .*; set data\.validation to"):
        validation(path)
    with pytest.raises(RunError, match="nothing to validate on"):
        validation(path, validation=path)


def test_a_folder_of_folders_names_them(corpus):
    with pytest.raises(RunError, match=r"its files in folders; name one of them: .*/dev, .*_10M"):
        train(str(corpus.folder))


@pytest.mark.parametrize("path", ["data/babylm_10M", "./absent", "/absent/folder", "a/b/c", "~/x"])
def test_a_missing_folder_says_where_the_data_is_and_what_to_type(path):
    with pytest.raises(RunError) as refused:
        train(path)
    said = str(refused.value)
    assert said.startswith(f"there is no folder {path!r}")
    for part in ("babylm.github.io", "osf.io", "git clone https://huggingface.co/datasets/KylinC"):
        assert part in said
    assert "type --set data.path=FOLDER --set data.validation=FOLDER" in said
    assert "\n" not in said


def test_a_missing_folder_is_reported_before_anything_is_read(tmp_path):
    here = str(tmp_path)
    for given, count in [("./absent", 1), ("owner/name", 0), ("owner/name/folder", 0), (here, 0)]:
        said = list(BabyLM(path=given).missing())
        assert len(said) == count
        assert list(BabyLM(path=here, validation=given).missing()) == said
    assert list(BabyLM(path=here, validation="dev").missing()) == []


def test_an_empty_folder_says_so_too(tmp_path):
    with pytest.raises(RunError, match=r"no \.train, .* files in .*; fetch the BabyLM corpora"):
        train(str(tmp_path))


def test_the_fingerprint_is_of_the_content(corpus):
    def fingerprint():
        return BabyLM(path=corpus.path, validation=corpus.validation).fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    write(corpus.folder / "dev", childes__dev="*CHI:\tother .\n")
    assert fingerprint() != before


def test_the_fingerprint_asks_no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail())
    assert BabyLM(path="owner/name", validation="owner/other").fingerprint()


# ---- rows


@pytest.fixture
def longer(tmp_path):
    path = write(tmp_path / "a", cbt__train="\n".join([WORDS] * 40), qed__train=WORDS)
    return {"path": path, "validation": write(tmp_path / "b", cbt__dev="\n".join([WORDS] * 9))}


def flat(rows):
    return np.concatenate([row["input_ids"] for row in rows]).tolist()


def test_chunks_are_contiguous_cuts_with_an_eos_behind_each_document(longer, byte_tokenizer):
    data = BabyLM(**longer, block=32, rows="chunk")
    rows = data.make_rows("train", byte_tokenizer, seed=0, epoch=0)
    eos = byte_tokenizer.eos_token_id
    expected = [id for text in data.texts("train") for id in [*byte_tokenizer.encode(text), eos]]
    assert flat(rows) == expected[: len(flat(rows))]
    assert len(expected) - len(flat(rows)) < 2
    assert {len(row["input_ids"]) for row in rows[:-1]} == {32}
    assert not data.fresh_each_epoch
    again = data.make_rows("train", byte_tokenizer, seed=0, epoch=1)
    assert flat(again[0:1]) == flat(rows[0:1])


def test_random_offset_cuts_each_epoch_elsewhere(longer, byte_tokenizer):
    data = BabyLM(**longer, block=32, rows="chunk", random_offset=True)
    named = BabyLM(**longer, block=32, rows="chunk", random_offset="epoch")
    made = [each.make_rows("train", byte_tokenizer, seed=0, epoch=1) for each in (data, named)]
    assert flat(made[0]) == flat(made[1])
    assert data.fresh_each_epoch

    def firsts(seed, split="train"):
        made = (data.make_rows(split, byte_tokenizer, seed=seed, epoch=e) for e in range(8))
        return [(len(rows[0]["input_ids"]), flat(rows)) for rows in made]

    lengths = [first for first, _ in firsts(seed=0)]
    assert len(set(lengths)) > 3
    assert all(1 < length <= 32 for length in lengths)
    assert lengths == [first for first, _ in firsts(seed=0)]
    assert lengths != [first for first, _ in firsts(seed=1)]
    tokens = [ids for _, ids in firsts(seed=0)]
    assert all(ids[:600] == tokens[0][:600] for ids in tokens)  # nothing before a cut is lost
    assert len({tuple(ids) for _, ids in firsts(seed=0, split="validation")}) == 1
    assert {first for first, _ in firsts(seed=0, split="validation")} == {32}


def test_random_offset_may_be_of_each_chunk(longer, byte_tokenizer):
    data = BabyLM(**longer, block=32, rows="chunk", random_offset="chunk")
    assert data.fresh_each_epoch
    plain = BabyLM(**longer, block=32, rows="chunk")
    whole = flat(plain.make_rows("train", byte_tokenizer, seed=0, epoch=0))
    lengths = plain.make_rows("train", byte_tokenizer, seed=0, epoch=0).split.lengths
    begins = np.concatenate([[0], np.cumsum(lengths)])

    def shifts(seed, epoch):
        rows = data.make_rows("train", byte_tokenizer, seed=seed, epoch=epoch)
        assert len(rows) == sum(lengths) // 32 - 1
        assert rows.dropped == 0
        firsts = [int(begins[row["document"][0]] + row["offset"][0]) for row in rows]
        for first, row in zip(firsts, rows, strict=True):
            assert row["input_ids"].tolist() == whole[first : first + 32]
            assert row["position"].tolist() == list(range(32))
        return [first - 32 * n for n, first in enumerate(firsts)]

    drawn = shifts(0, 0)
    assert min(drawn) >= 0 and max(drawn) < 32
    assert len(set(drawn)) > 20
    assert drawn == shifts(0, 0)
    assert len({tuple(each) for each in (drawn, shifts(0, 1), shifts(1, 0))}) == 3
    assert flat(data.make_rows("validation", byte_tokenizer, seed=0, epoch=1)) == flat(
        plain.make_rows("validation", byte_tokenizer, seed=0, epoch=0)
    )


@pytest.mark.parametrize("value", ["chunks", 1, "true"])
def test_random_offset_knows_two_words(value):
    with pytest.raises(ValidationError, match="random_offset"):
        BabyLM(path="a", rows="chunk", random_offset=value)


def test_random_offset_is_for_chunks():
    with pytest.raises(ValidationError, match='random_offset is for rows = "chunk"'):
        BabyLM(path="a", random_offset=True)


# ---- tokenizer


def test_bpe_never_sees_the_validation_split(longer, monkeypatch):
    asked = []
    inner = BabyLM.texts

    def texts(data, split):
        asked.append(split)
        return inner(data, split)

    monkeypatch.setattr(BabyLM, "texts", texts)
    tokenizer = Bpe(vocab_size=300).load(SimpleNamespace(), BabyLM(**longer))
    assert asked == ["train"]
    write(Path(longer["validation"]), cbt__dev="zyzzyva " * 999)
    other = Bpe(vocab_size=300).load(SimpleNamespace(), BabyLM(**longer))
    assert other.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_the_drawn_validation_rows_are_the_same_at_each_epoch(longer, byte_tokenizer, tmp_path):
    from kdcore.training.run_state import RunState

    data = BabyLM(**longer, block=32, rows="chunk", random_offset=True)
    stage = SimpleNamespace(
        data=data, seed=3, train=SimpleNamespace(eval_rows=5, eval_seed=0, steps=None)
    )
    run = RunState(recipe=stage, folder=tmp_path, device=None)
    run.tokenizer = byte_tokenizer
    first = flat(run.rows("validation"))
    for epoch in range(3):
        run.laid("train", epoch)
        assert flat(run.rows("validation")) == first
    every = pack_texts(data, "validation", byte_tokenizer)
    assert first == flat(every.subset(random_subset(len(every), 5, 0)))


@pytest.mark.slow
def test_real_text_keeps_nearly_all_of_its_words(shared_data, tmp_path):
    wiki = (shared_data / "wikitext2_valid.txt").read_text(encoding="utf-8")
    stories = (shared_data / "tinystories_valid.txt").read_text(encoding="utf-8")[:300_000]
    path = write(tmp_path, wikipedia__train=wiki, children_stories__train=stories)
    cleaned = train(path)
    words = sum(len(text.split()) for text in cleaned)
    assert 0.9 < words / len((wiki + stories).split()) <= 1
    assert not any("= = " in text or "  " in text or "\n\n\n" in text for text in cleaned)
