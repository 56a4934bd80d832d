"""Folders, patterns and paths: what is read, what is left out, and what is said of those absent."""

import logging
import os
from pathlib import Path

import datasets
import pytest
from kdcore_sft import Sft
from kdcore_text import Text
from typer.testing import CliRunner

import kdcore
from kdcore import RecipeError, RunError
from kdcore.cli.main import app
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

CSV = "n,text\n1,{}\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, logger="kdcore")
    return lambda: [record.getMessage() for record in caplog.records]


def write(files):
    for name, content in files.items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())


def csvs(*names):
    write({name: CSV.format(name) for name in names})


def texts(path, of="train", **options):
    return list(Text(path=path, **options).texts(of))


def refused(path, of="train", **options):
    with pytest.raises(RunError) as error:
        texts(path, of, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def missing(**options):
    return list(Text(**options).missing())


# ---- folders


def test_csv_among_other_files_is_read_and_skipped_files_are_named(logged):
    csvs("d/a.csv", "d/b.csv")
    write({"d/c.jsonl": '{"text": "no"}\n', "d/notes.txt": "no", "d/p.png": b"\x89PNG"})
    write({"d/README.md": "no", "d/.hidden": "no", "d/__cache__/x.csv": "no", "d/empty.csv": ""})
    data = Text(path="d", validation_share=0.5)
    assert len([*data.texts("train"), *data.texts("validation"), *data.texts("train")]) == 3
    assert texts("d") == ["d/a.csv", "d/b.csv"]
    said = "d: left out c.jsonl, empty.csv, notes.txt, p.png"
    assert logged() == [said] * 2  # once for each data, however often it is read


def test_long_lists_of_what_is_left_out_are_cut(logged):
    csvs("d/a.csv")
    write({f"d/{n}.png": "no" for n in range(9)})
    assert texts("d") == ["d/a.csv"]
    assert logged() == ["d: left out 0.png, 1.png, 2.png, 3.png, 4.png, 4 more"]


def test_as_many_files_of_two_formats_are_a_question(logged):
    write({"d/a.csv": CSV.format("a"), "d/b.jsonl": '{"text": "b"}\n'})
    said = refused("d")
    assert said.startswith("d has as many files of csv as of json: a.csv, b.jsonl; set format = ")
    assert texts("d", format="csv") == ["a"]
    assert texts("d", format="json") == ["b"]
    assert texts("d/*") == texts(["d/a.csv", "d/b.jsonl"]) == ["a", "b"]
    assert logged() == ["d: left out b.jsonl", "d: left out a.csv"]


def test_splits_may_have_different_formats(logged):
    write({"d/train.csv": CSV.format("a"), "d/valid.jsonl": '{"text": "b"}\n'})
    assert (texts("d"), texts("d", "validation"), logged()) == (["a"], ["b"], [])


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train.csv", "validation.csv", "test.csv"),
        ("en-training-1.CSV", "en-dev-1.csv", "eval.csv"),
        ("data/train-00000-of-00001.csv", "data/val-00000-of-00001.csv", "data/test-0.csv"),
        ("train/a.csv", "valid/a.csv", "testing/a.csv"),
        ("wikitrain.csv", "wikivalid.csv", "wikitest.csv"),
    ],
)
def test_splits_are_reported_by_names(train, valid, test):
    csvs(f"d/{train}", f"d/{valid}", f"d/{test}")
    assert texts("d") == [f"d/{train}"]
    assert texts("d", "validation") == [f"d/{valid}"]
    assert texts("d", "validation", validation="test") == [f"d/{test}"]
    assert texts("d", split="test") == [f"d/{test}"]
    assert refused("d", split="other").startswith("no file in d is named as the split 'other': it")


def test_a_split_may_have_any_name():
    csvs("d/train.csv", "d/hard-1.csv", "d/hard-2.csv")
    assert texts("d", "validation", validation="hard") == ["d/hard-1.csv", "d/hard-2.csv"]


def test_parts_of_words_tell_no_split(logged):
    write(
        {"d/constrained.txt": "a", "d/latest.txt": "b", "d/other.txt": "c", "d/x/invalid.txt": "d"}
    )
    assert texts("d") == ["a", "b", "c", "d"]
    assert logged() == []


def test_a_folder_without_splits_is_not_validated_on_what_it_trains_on():
    write({"d/a.txt": "one", "d/below/b.txt": "two"})
    assert texts("d") == ["one", "two"]
    said = refused("d", "validation")
    assert said.startswith(
        "nothing to validate on in d: its files are named for no split; set vali"
    )
    assert missing(path="d") == [said]
    assert missing(path="d", validation_share=0.5) == missing(path="d", validation="d/a.txt") == []
    assert texts("d", "validation", validation="d/below") == ["two"]
    csvs("e/train.csv", "e/test.csv")
    (said,) = missing(path="e")
    assert "its files are named for test, train;" in said


def test_each_record_may_have_its_file():
    write({f"d/{n}.json": f'{{\n  "text": "{n}"\n}}\n' for n in range(3)})
    assert texts("d") == ["0", "1", "2"]


def test_links_to_folders_are_followed_once(tmp_path):
    csvs("elsewhere/a.csv")
    os.mkdir("d")
    os.symlink(tmp_path / "elsewhere", "d/link")
    os.symlink(tmp_path / "d", "d/circle")
    assert texts("d") == ["elsewhere/a.csv"]


def test_folders_without_anything_to_read():
    os.mkdir("nothing")
    assert refused("nothing").startswith("the folder nothing is empty: put files of text")
    write({"blank/a.txt": "", "blank/b.txt": ""})
    assert refused("blank") == "all files in blank are empty: a.txt, b.txt"
    write({"other/a.md": "one", "other/b.md": "two"})
    said = refused("other")
    assert said.startswith("the folder other has no files that end in .txt, .json, ")
    assert said.endswith(
        'it has a.md, b.md; set path = "other/*" in [data] to read files of other endings'
    )
    assert texts("other/*") == ["one", "two"]
    assert texts("other", format="text") == ["one", "two"]


def test_a_card_says_which_files_are_which_config():
    front = "---\nconfigs:\n- config_name: {}\n  data_files: {}\n---\n"
    csvs("d/x.csv", "d/y.csv")
    write({"d/README.md": front.format("odd", "y.csv")})
    assert texts("d", config="odd") == ["d/y.csv"]
    write({"d/y.csv": "version https://git-lfs.github.com/spec/v1\noid"})
    assert refused("d", config="odd").endswith("type `git lfs pull` in its folder")


def test_one_split_of_what_datasets_saved_is_a_folder_too():
    saved = datasets.Dataset.from_dict({"text": ["one"]})
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk("saved")
    assert texts("saved/train") == texts("saved", split="test") == ["one"]


def test_instructions_are_read_of_the_same_folders(logged):
    write({"d/a.tsv": "prompt\tcompletion\nHi\tHello.\n", "d/notes.txt": "no"})
    (dialogue,) = Sft(path="d").dialogues("train")
    assert dialogue.messages[1]["content"] == "Hello."
    assert logged() == ["d: left out notes.txt"]


# ---- patterns


def test_patterns_stand_for_the_files_that_match(logged):
    csvs("d/a.csv", "d/b.csv", "d/below/c.csv")
    write({"d/notes.md": "no", "home/x.csv": CSV.format("x")})
    assert texts("d/*.csv") == ["d/a.csv", "d/b.csv"]
    assert texts("d/**/*.csv") == ["d/a.csv", "d/b.csv", "d/below/c.csv"]
    assert texts(["d/[b-z].csv", "~/*.csv"]) == ["d/b.csv", "x"]
    assert logged() == []
    assert texts("d/*") == ["d/a.csv", "d/b.csv"]
    assert logged() == ["d/*: left out d/notes.md"]
    assert texts("d/a.csv", "validation", validation="d/below/*") == ["d/below/c.csv"]
    assert refused("d/*.csv", "validation").startswith(
        "nothing to validate on apart from d/*.csv; set"
    )


def test_a_name_with_brackets_is_no_pattern():
    csvs("a[1].csv", "a1.csv")
    assert texts("a[1].csv") == ["a[1].csv"]


def test_the_fingerprint_is_of_all_that_match():
    csvs("d/a.csv")
    before = Text(path="d/*.csv").fingerprint()
    csvs("d/b.csv")
    assert Text(path="d/*.csv").fingerprint() != before


# ---- paths that lead nowhere


def test_what_is_not_there_is_reported_by_its_path(here):
    csvs("d/train.csv", "home/a.csv")
    give = '; give one that is there: path = "PATH" in [data], or --set data.path=PATH'
    for path, said in {
        "absent.txt": f"there is no file or folder 'absent.txt' in {here}{give}",
        "csv": f"there is no file or folder 'csv' in {here}{give}",  # a reader of `datasets`
        "d/trian.csv": f"there is no file or folder 'd/trian.csv' in {here}; did you mean "
        "'d/train.csv'?",
        "e/a/train.csv": f"there is no file or folder 'e/a/train.csv' in {here}: there is no "
        f"folder 'e'{give}",
        "my data": f"there is no file or folder 'my data' in {here}{give}",
        "~/absent": f"there is no file or folder '~/absent'{give}",
        "d/*.txt": f"no file matches 'd/*.txt' in {here}; d has train.csv{give}",
        "f/*.txt": f"no file matches 'f/*.txt' in {here}: there is no folder 'f'{give}",
        "": "path is empty: name a file, a folder, or a data set on the hub",
        "https://example.org/a.txt": "cannot read 'https://example.org/a.txt': download it, and "
        "name the file",
        os.devnull: f"cannot read '{os.devnull}': it is neither a file nor a folder",
    }.items():
        assert missing(path=path) == [said]
        assert refused(path) == said
        (fault,) = Sft(path=["owner/name", path]).missing()
        assert fault == said
    (fault,) = Text(path=[]).faults(None)
    assert fault == "path names nothing: name a file, a folder, or a data set on the hub"


def test_a_validation_that_is_not_there_is_reported_too(here):
    csvs("a.csv", "valid.csv")
    said = f"cannot read validation: there is no file or folder 'vali.csv' in {here}; did you mean "
    assert missing(path="a.csv", validation="vali.csv") == [f"{said}'valid.csv'?"]
    assert refused("a.csv", "validation", validation="vali.csv").startswith(said)
    said = f"cannot read validation: there is no file or folder 'dev' in {here}"
    assert refused("a.csv", "validation", validation="dev") == said


def test_a_name_on_the_hub_is_valid_and_similar_paths_are_named(here):
    csvs("stories.csv")
    assert missing(path="stories") == missing(path="owner/name") == []
    said = refused("stories")
    assert f"there is no such file or folder in {here}, and the hub cannot be reached" in said
    assert said.endswith("; did you mean 'stories.csv'?")


RECIPE = """
[student]
model = "m"
[data]
use = "text"
path = "absent.txt"
validation_share = 0.1
[[loss]]
use = "ce"
[train]
lr = 1e-3
steps = 1
"""


def test_check_refuses_what_is_not_there_and_loads_nothing(here):
    write({"r.toml": RECIPE})
    done = CliRunner().invoke(app, ["check", "r.toml"])
    assert done.exit_code == 2
    place = "r.toml:4:2: "
    assert (
        done.stderr.startswith(place)
        and "there is no file or folder 'absent.txt' in" in done.stderr
    )
    with pytest.raises(RecipeError, match="no file or folder 'absent"):
        kdcore.check("r.toml")
    write({"absent.txt": "one\n\ntwo"})
    assert CliRunner().invoke(app, ["check", "r.toml"]).exit_code == 0


def test_a_recipe_can_be_opened_without_its_files():
    write({"r.toml": RECIPE})  # as one of a finished run, of which the data has gone
    assert read_recipe("r.toml", PluginManager()).build().data.path == "absent.txt"


def test_a_run_looks_for_its_files_before_it_loads_anything(here):
    write({"r.toml": RECIPE})
    done = CliRunner().invoke(app, ["run", "r.toml", "--out", "out"])
    assert isinstance(done.exception, RunError)
    assert str(done.exception).startswith(f"there is no file or folder 'absent.txt' in {here}; ")
    assert not os.path.exists("out")


def test_one_document_cannot_be_shared_out(here):
    write({"one.txt": "a long text\nof one document"})
    with pytest.raises(RunError, match=r"one\.txt has one document, which validation_share = 0\.1"):
        list(Text(path="one.txt", validation_share=0.1).texts("train"))


def test_bytes_are_no_header(here):
    Path("b.txt").write_bytes(bytes(range(1, 128)) * 9)
    assert len(texts("b.txt")) >= 1
