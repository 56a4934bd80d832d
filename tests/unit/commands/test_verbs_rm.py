"""`kdcore rm`: what it removes, what it leaves, and that it asks."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from recorded_runs import keep_run
from typer.testing import CliRunner
from whole_runs import recipe_text

from kdcore import UsageError
from kdcore.cli.main import app
from kdcore.commands import rm as verb
from kdcore.plugin.manager import PluginManager
from kdcore.runs.folder import locked
from kdcore.runs.runner import RunRequest, run_all

pytestmark = pytest.mark.slow


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def teacher_of(run):
    return {"use": "hf", "model": f"{run}/final"}


def failed(out, name, why="RunError: the loss is nan", checkpoint=True):
    folder = keep_run(out, name, finished=False)
    (folder / "log.txt").write_text(f"2026 INFO ends after step 3 of 9: {why}\n")
    if checkpoint:
        (folder / "checkpoints" / "step-3").mkdir(parents=True)
    return folder


def test_a_run_is_removed_with_all_that_it_has(out):
    one, other = keep_run(out, "a-11111111"), keep_run(out, "b-22222222")
    verb.rm(["a"], yes=True, out=out)
    assert not one.exists() and other.exists()
    assert [*out.iterdir()] == [other]


def test_it_says_what_it_removes(out, capsys):
    keep_run(out, "a-11111111")
    verb.rm(["a"], yes=True, out=out)
    assert capsys.readouterr().out.startswith("runs/a-11111111: finished, ")


def test_without_a_terminal_to_ask_on_nothing_is_removed(out, monkeypatch):
    one = keep_run(out, "a-11111111")
    said = CliRunner().invoke(app, ["rm", "a"])
    assert isinstance(said.exception, UsageError) and "--yes" in str(said.exception)
    assert one.exists()


@pytest.mark.parametrize("answer, stays", [("n\n", True), ("y\n", False)])
def test_it_asks(out, monkeypatch, answer, stays):
    one = keep_run(out, "a-11111111")
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(verb, "sys", terminal)
    CliRunner().invoke(app, ["rm", "a"], input=answer)
    assert one.exists() == stays


def test_what_another_run_needs_is_left(out):
    teacher = keep_run(out, "r.teacher-11111111")
    student = keep_run(out, "r.kd-22222222", teacher=teacher_of(teacher))
    with pytest.raises(UsageError, match="is needed by runs/r"):
        verb.rm(["r.teacher"], yes=True, out=out)
    assert teacher.exists() and student.exists()


def test_nothing_is_removed_where_one_of_several_is_needed(out):
    teacher, alone = keep_run(out, "r.teacher-11111111"), keep_run(out, "a-33333333")
    keep_run(out, "r.kd-22222222", teacher=teacher_of(teacher))
    with pytest.raises(UsageError):
        verb.rm(["a", "r.teacher"], yes=True, out=out)
    assert alone.exists() and teacher.exists()


def test_those_that_need_each_other_go_together(out):
    teacher = keep_run(out, "r.teacher-11111111")
    keep_run(out, "r.kd-22222222", teacher=teacher_of(teacher.resolve()))
    verb.rm(["r.kd", "r.teacher"], yes=True, out=out)
    assert [*out.iterdir()] == []


def test_a_run_that_names_the_folder_from_elsewhere_needs_it_too(out):
    keep_run(out, "r.teacher-11111111")
    keep_run(out, "s-22222222", student={"model": "../elsewhere/runs/r.teacher-11111111/final"})
    with pytest.raises(UsageError, match="is needed by"):
        verb.rm(["r.teacher"], yes=True, out=out)


@pytest.mark.parametrize("name", ["hf-0123456789ab", "answers-teacher-0123456789ab"])
def test_what_a_store_was_made_of_is_left(out, name):
    teacher = keep_run(out, "r.teacher-11111111")
    store = out / "caches" / name
    store.mkdir(parents=True)
    (store / "meta.json").write_text(json.dumps({"data": "0" * 16}))
    (store / "about.json").write_text(json.dumps({"teacher": f"hf(model='{teacher}/final')"}))
    with pytest.raises(UsageError, match="kdcore cache rm"):
        verb.rm(["r.teacher"], yes=True, out=out)
    assert teacher.exists()


def test_failed_runs_are_those_that_ended_with_an_error_or_have_no_checkpoint(out):
    stays = [
        keep_run(out, "done-11111111"),
        failed(out, "interrupted-22222222", "Interrupted: SIGTERM"),
        failed(out, "killed-33333333", "KeyboardInterrupt: "),
    ]
    failed(out, "nan-44444444")
    failed(out, "early-55555555", "Interrupted: SIGTERM", checkpoint=False)
    verb.rm(failed=True, yes=True, out=out)
    assert {*out.iterdir()} == {*stays}


def test_a_failed_run_that_went_on_is_not_one(out):
    one = failed(out, "a-11111111")
    with (one / "log.txt").open("a") as file:
        file.write("2026 INFO ends after step 5 of 9: Interrupted: SIGTERM\n")
    verb.rm(failed=True, yes=True, out=out)
    assert one.exists()


def test_a_run_that_is_running_is_left(out):
    one = failed(out, "a-11111111")
    with locked(one):
        verb.rm(failed=True, yes=True, out=out)
        with pytest.raises(UsageError, match="it is running"):
            verb.rm(["a"], yes=True, out=out)
    assert one.exists()


def test_no_name_is_a_usage_error(out):
    with pytest.raises(UsageError, match="--failed"):
        verb.rm(out=out)


def test_only_the_link_to_a_run_elsewhere_is_removed(out, tmp_path):
    real = keep_run(tmp_path / "elsewhere", "a-11111111")
    out.mkdir()
    (out / "a-11111111").symlink_to(real)
    verb.rm(["a"], yes=True, out=out)
    assert real.exists() and not (out / "a-11111111").exists()


def test_a_link_that_leads_elsewhere_leaves_its_run_alone_and_no_other(out, tmp_path):
    linked, other = failed(out, "a-11111111"), failed(out, "b-22222222")
    (tmp_path / "elsewhere").mkdir()
    (linked / "data").symlink_to(tmp_path / "elsewhere")
    verb.rm(failed=True, yes=True, out=out)
    assert linked.exists() and not other.exists()


STAGED = recipe_text(
    {"train.steps": 1, "train.batch": 2, "train.eval_rows": 2},
    """\
[stage.big]
[stage.small.teacher]
use = "hf"
model = "@big"
[[stage.small.loss]]
use = "kl"
""",
)


def test_stages_of_a_real_run(out):
    Path("r.toml").write_text(STAGED)
    host = PluginManager(off=["panel"])
    folders = run_all(RunRequest(recipe="r.toml", out=out), host)
    big, small = folders
    with pytest.raises(UsageError, match="is needed by"):
        verb.rm([big.name], yes=True, out=out)
    assert not verb.has_failed(big)
    verb.rm([small.name], yes=True, out=out)
    verb.rm([big.name], yes=True, out=out)
    assert not big.exists() and not small.exists()
