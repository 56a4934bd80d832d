"""`kdcore show`: the list, one run, and comparisons over seeds with what differs."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
import typer
from recorded_runs import drawn, expect, keep_run, some_lines
from typer.testing import CliRunner

from kdcore import UsageError
from kdcore.commands.comparison import group_tables as comparison_module
from kdcore.commands.comparison.group_tables import comparison, to_csv
from kdcore.commands.comparison.groups import differing, grouped, settings_of, summarize_run
from kdcore.commands.fitting import Column, Fitting
from kdcore.commands.show import found_runs, show
from kdcore.runs.reading.metrics import evaluation_line


def scores(nll, **more):
    """A run that evaluated once."""
    measured = {"nll": nll, "perplexity": math.exp(nll), "bits_per_byte": nll / 2.9, **more}
    return [{**evaluation_line(300, measured), "tokens": 270_000, "elapsed": 75.0}]


def seeds(out, name, values, **table):
    """A run for each value, with seeds 0, 1, ..."""
    return [
        keep_run(out, f"{name}-{seed}{len(name)}", lines=scores(value), seed=seed, **table)
        for seed, value in enumerate(values)
    ]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def said(capsys, *arguments, **options):
    show(*arguments, **options)
    return capsys.readouterr().out


# ---- all runs ------------------------------------------------------------------


def three_runs():
    keep_run("runs", "quickstart.teacher-1a2b3c4d")
    keep_run("runs", "quickstart.kd-5e6f7a8b", lines=some_lines(130), finished=False)
    keep_run("runs", "empty-00000000", lines=[], finished=False)


@pytest.mark.parametrize("width", [40, 80, 140])
def test_the_list_of_runs(here, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    three_runs()
    expect(f"show_list_{width}", said(capsys))


def test_no_runs_yet(here, capsys):
    assert said(capsys) == "no runs in runs yet; kdcore run quickstart makes some\n"
    assert json.loads(said(capsys, as_json=True)) == []


def test_the_list_for_programs(here, capsys):
    three_runs()
    rows = {row["run"]: row for row in json.loads(said(capsys, as_json=True))}
    assert rows["quickstart.kd-5e6f7a8b"]["state"] == "unfinished"
    assert rows["quickstart.kd-5e6f7a8b"]["steps"] == 130
    assert rows["empty-00000000"]["loss"] is None
    text = said(capsys, as_csv=True)
    assert {row["run"] for row in csv.DictReader(io.StringIO(text))} == rows.keys()


# ---- one run ---------------------------------------------------------------------


def test_one_run(here, capsys):
    three_runs()
    expect("show_one_80", said(capsys, ["quickstart.t"]))
    assert "unfinished" in said(capsys, ["quickstart.kd"])


def test_one_run_for_programs(here, capsys):
    three_runs()
    parsed = json.loads(said(capsys, ["quickstart.t"], as_json=True))
    assert parsed["curves"]["eval/nll"]["first"] == 4.0
    assert parsed["train"]["lr"] == 0.006 and "red ball" in parsed["texts"]["story"]


def test_a_run_that_is_not_there(here):
    three_runs()
    with pytest.raises(UsageError, match="quickstart"):
        show(["quickstart.kx"])
    with pytest.raises(UsageError, match="named like 'nothing"):
        show(["nothing*"])
    with pytest.raises(UsageError, match="no run in elsewhere is named like 'quickstart"):
        show(["elsewhere/quickstart.*"])


def test_a_pattern_may_begin_with_a_folder(here):
    three_runs()
    names = [run.name for run in found_runs(["quickstart.*"], Path("runs"))]
    assert len(names) == 2
    for pattern in ("runs/quickstart.*", str(Path("runs").resolve() / "quickstart.*")):
        assert [run.name for run in found_runs([pattern], Path("elsewhere"))] == names


# ---- several runs -----------------------------------------------------------------


def test_stages_of_a_recipe_side_by_side(here, capsys):
    seeds("runs", "quickstart.teacher", [0.901, 0.903])
    seeds("runs", "quickstart.ce", [1.314, 1.406], loss=[{"use": "ce", "weight": 1.0}])
    seeds("runs", "quickstart.kd", [1.031, 1.060], train={"lr": 0.005, "epochs": 3.0})
    folders = sorted((here / "runs").iterdir())
    expect("show_comparison_80", drawn(comparison(folders), 80))
    expect("show_comparison_40", drawn(comparison(folders), 40))
    expect("show_several_80", said(capsys, ["quickstart.*"]))


def test_runs_on_other_held_out_rows_are_compared_with_a_word(here, capsys):
    for seed, old in enumerate((True, True, False)):
        keep_run("runs", f"a-{seed}", lines=scores(1.0), seed=seed, old=old)
    word = "the held-out rows were not drawn by one seed; 2 of these runs are older than"
    assert word in said(capsys, ["a-0", "a-1", "a-2"])
    assert "held-out" not in said(capsys, ["a-0", "a-2"])
    keep_run("runs", "a-3", lines=scores(1.0), train={"eval_seed": 3})
    text = said(capsys, ["a-2", "a-3"])
    assert "the held-out rows were not drawn by one seed\n" in text


def test_namesakes_are_reported_apart_by_what_differs(here, capsys):
    for use in ("kl", "reverse-kl"):
        losses = [{"use": "ce"}, {"use": use}]
        keep_run("runs", f"sweep-{use[0]}0", lines=scores(1.0), loss=losses)
    text = said(capsys, ["sweep-k0", "sweep-r0"])
    assert "sweep  loss.2.use=kl " in text and "sweep  loss.2.use=reverse-kl " in text
    assert "what differs" not in text


def test_the_spread_is_that_of_a_sample(here):
    folders = seeds("runs", "a", [1.0, 2.0, 4.0])
    [group] = grouped([summarize_run(folder) for folder in folders])
    assert group.mean("nll") == pytest.approx(7 / 3)
    assert group.spread("nll") == pytest.approx(math.sqrt(7 / 3))
    assert group.spread("nll") != group.spread("bits_per_byte")


def test_a_run_that_diverged_is_not_left_out_of_the_mean(here, capsys):
    seeds("runs", "a", [1.0, math.nan])
    assert "nan ± nan" in said(capsys, ["a*"])
    [row] = json.loads(said(capsys, ["a*"], as_json=True))
    assert (row["nll"], row["nll_spread"]) == (None, None)


def test_what_cannot_change_the_result_does_not_split_a_group(here):
    for seed, every in enumerate((10, 20)):
        train = {"lr": 0.006, "log_every": every, "micro_batch": every}
        keep_run("runs", f"a-{seed}", train=train, log=[{"use": "tracker"}] * seed, seed=seed)
    parsed = [summarize_run(folder) for folder in sorted((here / "runs").iterdir())]
    assert len(grouped(parsed)) == 1


def test_micro_batches_count_where_tokens_are_ranked_in_them():
    def settings(scope, size):
        return settings_of({"selection": {"scope": scope}, "train": {"micro_batch": size}})

    assert settings("step", 1) == settings("step", 2)
    assert settings("micro_batch", 1) != settings("micro_batch", 2)


def test_teachers_that_differ_in_the_seed_only_are_the_same_teacher(here):
    for seed in (0, 1):
        teacher = keep_run("runs", f"q.teacher-{seed}", seed=seed)
        table = {"use": "hf", "model": f"runs/{teacher.name}/final"}
        keep_run("runs", f"q.kd-{seed}", teacher=table, seed=seed)
    other = keep_run("runs", "q.teacher-2", train={"lr": 1.0})
    keep_run("runs", "q.kd-2", teacher={"use": "hf", "model": f"runs/{other.name}/final"})
    groups = grouped([summarize_run(folder) for folder in sorted((here / "runs").glob("q.kd*"))])
    assert [len(group.runs) for group in groups] == [2, 1]
    assert differing(groups) == ["teacher.model"]


def test_unfinished_runs_are_a_group_of_their_own(here):
    seeds("runs", "a", [1.0, 2.0])
    keep_run("runs", "a-9", lines=some_lines(130), finished=False)
    groups = grouped([summarize_run(folder) for folder in sorted((here / "runs").iterdir())])
    assert [group.name for group in groups] == ["a", "a (at step 130)"]


def test_a_stage_with_a_tokenizer_on_other_data(here):
    stage = {"seed": 3, "data": {"use": "stories", "stories": 60}, "train": {"lr": 1.0}}
    folder = keep_run("runs", "quickstart.kd-1")
    (folder / "resolved.toml").write_text(
        'name = "quickstart"\n[tokenizer]\nuse = "bpe"\n[data]\nuse = "stories"\nstories = 2500\n'
        "[stage.kd]\nseed = 3\n[stage.kd.data]\nstories = 60\n[stage.kd.train]\nlr = 1.0\n"
    )
    parsed = summarize_run(folder)
    assert (parsed.name, parsed.seed) == ("quickstart.kd", stage["seed"])
    assert parsed.settings["data.stories"] == 60
    assert parsed.settings["tokenizer_data.stories"] == 2500


def test_a_failed_run_says_why(here, capsys):
    keep_run("runs", "ok-00000000", lines=scores(1.0))
    folder = keep_run("runs", "ok-11111111", lines=[], finished=False, train={"lr": 1e9})
    (folder / "failure.txt").write_text("the loss is not finite after step 0\n")
    text = said(capsys)
    assert "failed" in text and "ok-11111111  the loss is not finite after step 0" in text
    rows = {row["run"]: row for row in json.loads(said(capsys, as_json=True))}
    assert rows["ok-11111111"]["reason"] == "the loss is not finite after step 0"
    assert rows["ok-00000000"]["reason"] is None
    text = said(capsys, ["ok-*"])
    assert "ok (failed)" in text and "at step 0" not in text
    assert "ok-11111111  the loss is not finite" in text
    (folder / "failure.txt").write_text("interrupted after step 3 of 9\n")
    assert "unfinished" in said(capsys)


def test_labels_say_no_more_than_tells_runs_apart(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    for n, lr in enumerate((0.001, 0.002, 0.003)):
        train = {"lr": lr, "warmup": 100 * n, "weight_decay": n / 10, "betas": [0.9, 0.9 + n / 100]}
        student = {"model": f"a/model/with/a/name/that/takes/a/whole/line/of/its/own/{n}"}
        keep_run("runs", f"ok-{n}", lines=scores(1.0 + n), train=train, student=student)
    text = said(capsys, ["ok-*"])
    head, first, *_ = text.splitlines()
    assert head.split() == ["run", "validation", "loss", "bits", "per", "byte"]
    assert first.count("=") == 1 and "1.0000" in first
    assert "what differs" in text and "train.warmup" in text


def test_many_groups_are_compared_as_often_as_few(here, monkeypatch):
    """Each with each, ten thousand runs took an hour."""
    asked = []
    monkeypatch.setattr(comparison_module, "differing", lambda g: asked.append(len(g)) or [])
    for many in (3, 30):
        asked.clear()
        for n in range(many):
            keep_run(f"of-{many}", f"ok-{n}", lines=scores(1.0 + n), train={"lr": 0.001 * n})
        comparison(sorted(Path(f"of-{many}").iterdir()))
        assert asked == [many]


def test_cells_show_no_control_codes_and_fold_in_their_own_column():
    names = ["a\x07 b", "one two three four", "字字"]
    text = drawn(Fitting([Column("run", names, 9, False), Column("x", ["1", "2", "30"], 1)]), 14)
    assert text.splitlines() == [
        "run       x",
        "a b       1",
        "one two   2",
        "three",
        "four",
        "字字     30",
    ]


def test_numbers_stay_where_names_can_be_folded():
    names = [f"ok  {'  '.join(f'train.option_{k}={n}' for k in range(9))}" for n in range(2)]
    columns = [Column("run", names, 9, False), Column("x", ["1.5", "2.5"], 1)]
    text = drawn(Fitting(columns), 80)
    assert "1.5" in text and "without" not in text and "train.option_8=1" in text


def test_options_of_another_loss_do_not_count_as_differences():
    losses = [
        {"use": "kl", "temperature": 2.0},
        {"use": "skew-kl", "temperature": 1.0, "skew": 0.1},
    ]
    parsed = [settings_of({"loss": [loss]}) for loss in losses]
    groups = [type("G", (), {"settings": settings})() for settings in parsed]
    assert differing(groups) == ["loss.1.use", "loss.1.temperature"]


def test_csv_has_a_header_and_every_score(here, capsys):
    seeds("runs", "a", [1.0, 3.0])
    [row] = csv.DictReader(io.StringIO(said(capsys, ["a*"], as_csv=True)))
    assert (row["run"], row["n"], row["seeds"]) == ("a", "2", "0 1")
    assert float(row["nll"]) == 2.0 and float(row["nll_spread"]) == pytest.approx(math.sqrt(2))
    assert "perplexity" in row
    assert to_csv([]) == ""


def test_parts_of_a_score_are_for_programs(here, capsys):
    lines = [{"step": 1, "eval/blimp": 0.75, "eval/blimp/islands": 0.5}]
    keep_run("runs", "a-1", lines=lines)
    keep_run("runs", "b-1", lines=lines)
    assert "islands" not in said(capsys, ["a", "b"])
    assert "blimp/islands" in said(capsys, ["a", "b"], as_csv=True)


def test_narrow_terminals_lose_the_least_important_columns():
    columns = [
        Column("run", ["a-long-name"], 3, False),
        Column("x", ["1"], 1),
        Column("y", ["2"], 2),
    ]
    assert drawn(Fitting(columns), 17) == drawn(Fitting([columns[0], columns[1], columns[2]]), 80)
    narrow = drawn(Fitting(columns), 16)
    assert narrow.splitlines()[0].split() == ["run", "y"] and "without x" in narrow


def test_the_help_says_what_the_spread_is():
    app = typer.Typer()
    app.command()(show)
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80", "NO_COLOR": "1"}).stdout
    assert "sample standard deviation" in " ".join(said.split())
