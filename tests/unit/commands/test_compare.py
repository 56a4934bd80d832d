"""`kdcore compare` on run folders whose numbers are known."""

import csv
import io
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_runs import documents, made
from typer.testing import CliRunner

from kdcore.checksums import keep
from kdcore.cli.main import app
from kdcore.document_losses import DOCUMENTS

pytestmark = pytest.mark.slow

BASE = [1.00, 1.02, 0.98, 1.01, 0.99]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def asked(*arguments, code=0):
    done = CliRunner().invoke(app, ["compare", *map(str, arguments)], standalone_mode=False)
    if code:
        return str(done.exception)
    assert done.exception is None, done.exception
    return done.output


def rows(*arguments):
    return json.loads(asked(*arguments, "--json"))


def arms(shift=-0.2, seeds=5, jitter=0.001, **options):
    """Two arms that differ by `shift`, a little more or less for each seed."""
    draw = random.Random(0)
    for seed in range(seeds):
        made("r.ce", seed, (3.0, 2.0, BASE[seed]))
        end = BASE[seed] + shift + draw.uniform(-jitter, jitter)
        made("r.kd", seed, (3.0, 2.0, end), loss="kl", **options)


def test_a_clear_difference_is_better_with_everything_said():
    arms()
    tokens, time = rows("r.*", "--baseline", "ce")
    assert (tokens["at"], time["at"]) == ("tokens", "time")
    for row in (tokens, time):
        assert (row["baseline"], row["arm"], row["seeds"]) == ("ce", "kd", 5)
        assert row["difference"] == pytest.approx(-0.2, abs=1e-3)
        assert row["low"] < row["difference"] < row["high"] < -0.19 and row["documents"] == 6
        assert row["verdict"] == "better" and row["interval_counts"] == "seeds and documents"
        assert row["margin"] == pytest.approx(0.005) and row["tokens"] == 1000
    said = asked("r.*", "--baseline", "ce")
    assert "lower is better: against ce, at equal tokens" in said
    assert "kd: better: the interval excludes 0; seeds and documents count" in said
    assert (
        "kd is better than ce in validation loss (nats per token) at equal tokens: 0.8001 against "
        "1.0000 (95 % interval of the difference" in said
    )
    assert "5 paired seeds and 6 held-out documents, both counted as random)." in said


def test_which_arm_is_the_baseline():
    arms()
    assert rows("r.*", "--baseline", "kd")[0]["verdict"] == "worse"
    assert rows(*sorted(Path("runs").glob("r.kd*")), *Path("runs").glob("r.ce*"))[0]["arm"] == "ce"
    assert rows("r.*", "--baseline", next(Path("runs").glob("r.kd*")).name)[0]["arm"] == "ce"
    assert "--baseline 'x' is not an arm: there are '" in asked("r.*", "--baseline", "x", code=2)
    assert "fits several arms" in asked("r.*", "--baseline", "r.", code=2)


@pytest.mark.parametrize(
    ("shift", "jitter", "margin", "verdict"),
    [
        (0.2, 0.001, "0.5%", "worse"),
        (0.001, 0.0005, "0.5%", "no difference above the margin"),
        (0.001, 0.0005, "0.0001", "worse"),
        (0.01, 0.2, "0.5%", "undecided"),
    ],
)
def test_verdicts(shift, jitter, margin, verdict):
    arms(shift, jitter=jitter)
    assert rows("r.*", "--baseline", "ce", "--margin", margin)[0]["verdict"] == verdict


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_fewer_than_three_seeds_there_is_no_verdict_but_other_documents(seeds):
    arms(seeds=seeds, noise=0.01)
    row = rows("r.*", "--baseline", "ce")[0]
    assert row["verdict"] is None and row["interval_counts"] == "documents"
    assert row["low"] < row["difference"] < row["high"]
    said = asked("r.*", "--baseline", "ce")
    assert "(these weights, other documents)" in said and "no verdict" in said
    assert "of these weights on other documents); fewer than 3 seeds allow no verdict." in said


def test_seeds_without_a_partner_are_said_and_left_out():
    arms(seeds=4)
    made("r.kd", 9, loss="kl")
    row = rows("r.*", "--baseline", "ce")[0]
    assert row["seeds"] == 4
    assert row["notes"] == ["seed 9 of kd has no partner and is left out"]


def test_without_losses_of_documents_only_seeds_count_and_that_is_said():
    arms(kept=False)
    row = rows("r.*", "--baseline", "ce")[0]
    assert (row["verdict"], row["interval_counts"]) == ("better", "seeds")
    assert row["notes"] == ["documents are not counted: these runs kept no losses of documents"]


def test_bits_per_byte_count_documents_and_other_scores_do_not():
    def scores(nll):
        return {"bits_per_byte": nll / math.log(2) / 4, "blimp": 1 - nll / 10}

    for seed in range(3):
        made("r.ce", seed, (3.0, BASE[seed]), scores=scores)
        made("r.kd", seed, (3.0, BASE[seed] - 0.2 - seed / 1000), loss="kl", scores=scores)
    row = rows("r.*", "--baseline", "ce", "--metric", "bits_per_byte")[0]
    assert row["documents"] == 6 and row["verdict"] == "better"
    assert row["difference"] == pytest.approx(-0.201 / math.log(2) / 4)
    row = rows("r.*", "--baseline", "ce", "--metric", "eval/blimp")[0]
    assert (row["verdict"], row["documents"]) == ("better", 0)  # higher is better
    assert row["difference"] > 0


def test_equal_tokens_and_equal_time_are_read_between_evaluations():
    for seed in range(3):
        made("r.ce", seed, (3.0, 2.0, 1.0), tokens=1000, seconds=10.0)
        made("r.kd", seed, (3.0, 1.0, 0.5), loss="kl", tokens=1000, seconds=40.0)
        made("r.long", seed, (3.0, 1.5, 0.9), loss="jsd", tokens=4000, seconds=40.0)
    found = {(row["at"], row["arm"]): row for row in rows("r.*", "--baseline", "ce")}
    assert found["tokens", "kd"]["arm_mean"] == 0.5
    assert found["tokens", "kd"]["arm_seconds"] == 40
    assert found["time", "kd"]["arm_mean"] == pytest.approx(2.0)  # a half of the way to 1.0
    assert found["tokens", "long"]["arm_mean"] == pytest.approx(2.25)
    assert found["tokens", "long"]["tokens"] == 1000
    assert found["time", "kd"]["baseline_mean"] == 1.0
    assert found["time", "kd"]["documents"] == 6


def test_equal_time_counts_cpu_seconds_where_all_runs_have_them():
    for seed in range(3):
        made("r.ce", seed, (3.0, 2.0, 1.0), seconds=10.0, cpu_seconds=10.0)
        made("r.kd", seed, (3.0, 1.0, 0.5), loss="kl", seconds=40.0, cpu_seconds=20.0)
    (row,) = rows("r.*", "--baseline", "ce", "--at", "time")
    assert row["arm_mean"] == pytest.approx(1.0)  # after 10 of the 20 CPU seconds
    assert row["arm_seconds"] == 10
    assert "at equal CPU time" in asked("r.*", "--baseline", "ce")
    made("r.kd", 3, (3.0, 1.0, 0.5), loss="kl", seconds=40.0)
    made("r.ce", 3, (3.0, 2.0, 1.0), seconds=10.0)
    (row,) = rows("r.*", "--baseline", "ce", "--at", "time")
    assert row["arm_mean"] == pytest.approx(2.0)  # one run has none: by the clock


def test_runs_on_a_gpu_are_compared_by_the_clock():
    for seed in range(3):
        one = made("r.ce", seed, (3.0, 2.0, 1.0), seconds=10.0, cpu_seconds=10.0)
        other = made("r.kd", seed, (3.0, 1.0, 0.5), loss="kl", seconds=40.0, cpu_seconds=20.0)
        for folder in (one, other):
            (folder / "env.json").write_text(json.dumps({"devices": [{"name": "a GPU"}]}))
    (row,) = rows("r.*", "--baseline", "ce", "--at", "time")
    assert row["arm_mean"] == pytest.approx(2.0)


def test_several_comparisons_are_corrected_and_that_is_said():
    arms()
    for seed in range(5):
        made("r.jsd", seed, (3.0, 2.0, BASE[seed] + [-0.03, 0, 0.02, 0.01, 0.01][seed]), loss="jsd")
    said = asked("r.*", "--baseline", "ce")
    assert "Holm's correction over 2 comparisons" in said
    assert {row["comparisons"] for row in rows("r.*", "--baseline", "ce")} == {2}


def test_arms_of_a_sweep_have_its_labels():
    points = []

    def point(folder, seed, loss, control=None, **more):
        sets = {"stage.student.seed": seed, "stage.student.loss.1.use": loss}
        about = {"sets": sets, "control": control, "stage": "student", "run": folder.name}
        points.append(about | more)
        return folder.name

    for seed in range(3):
        for loss, shift in (("kl", -0.2), ("jsd", -0.1)):
            values = (3.0, BASE[seed] + shift)
            twin = point(made("r", seed, values, loss=loss), seed, loss)
            # Its value is measured: another one for each seed.
            for control, more in (("smoothed", {}), ("more-steps", {"twin": twin})):
                own = made("r", seed, values, loss=f"{control}{loss}", more=f"t = {seed}")
                point(own, seed, loss, control, **more)
        # One control for both, told of once.
        point(made("r", seed, (3.0, BASE[seed]), loss="ce"), seed, "jsd", "no-teacher")
    Path("runs/sweep.json").write_text(json.dumps({"recipe": "r", "points": points}))
    found = rows("r-*", "--baseline", "no-teacher", "--at", "tokens")
    assert {row["arm"]: row["seeds"] for row in found} == {
        "loss.1.use=kl": 3,
        "loss.1.use=kl smoothed": 3,
        "loss.1.use=kl more-steps": 3,
        "loss.1.use=jsd": 3,
        "loss.1.use=jsd smoothed": 3,
        "loss.1.use=jsd more-steps": 3,
    }


def swept(folder, seed, control=None, twin=None, **sets):
    """A point in sweep.json."""
    said = {"sets": {"seed": seed, **sets}, "control": control, "twin": twin}
    return {**said, "stage": "", "run": folder.name}


def test_an_arm_has_no_runs_of_the_recipe_before_an_edit():
    points = []
    for seed in range(6):
        more = "" if seed < 3 else "clip = 0.5"
        for loss in ("kl", "jsd"):
            folder = made("r", seed, (3.0, 2.0), loss=loss, more=more)
            points.append(swept(folder, seed, loss=loss))
            control = made("r", seed, (3.0, 2.0), loss=f"{loss}2", more=f"{more}\nt = {seed}")
            points.append(swept(control, seed, "more-steps", folder.name, loss=loss))
    Path("runs/sweep.json").write_text(json.dumps({"points": points}))
    found = rows("r-*", "--at", "tokens", "--baseline", points[0]["run"])
    arms = {found[0]["baseline"]: 3} | {row["arm"]: row["seeds"] for row in found}
    assert arms == {
        "loss=kl train.clip=-": 3,
        "loss=jsd train.clip=-": 3,
        "loss=kl more-steps train.clip=-": 3,
        "loss=jsd more-steps train.clip=-": 3,
        # The others have no seed in common with the baseline.
        "loss=kl train.clip=0.5": 0,
        "loss=jsd train.clip=0.5": 0,
        "loss=kl more-steps train.clip=0.5": 0,
        "loss=jsd more-steps train.clip=0.5": 0,
    }


def test_a_run_of_two_sweeps_stays_in_its_arm():
    kl = [made("r", seed, (3.0, 2.0), loss="kl") for seed in range(3)]
    jsd = [made("r", seed, (3.0, 2.5), loss="jsd") for seed in range(3)]
    points = [swept(each, seed, loss="kl") for seed, each in enumerate(kl)]
    points += [swept(each, seed, loss="jsd") for seed, each in enumerate(jsd)]
    points += [swept(each, seed, lr=1) for seed, each in enumerate(kl)]
    Path("runs/sweep.json").write_text(json.dumps({"points": points}))
    (found,) = rows("r-*", "--at", "tokens", "--baseline", kl[0].name)
    assert (found["baseline"], found["arm"], found["seeds"]) == ("loss=kl", "loss=jsd", 3)
    # A file of an earlier version, or with some of its points.
    Path("runs/sweep.json").write_text(json.dumps({"points": points[1:3] + points[-3:-2]}))
    (found,) = rows("r-*", "--at", "tokens", "--baseline", kl[0].name)
    assert found["seeds"] == 3


def test_seeds_of_moved_runs_are_one_arm():
    for seed in range(3):
        teacher = made("r.teacher", seed, out=Path("old"))
        taught = f'[teacher]\nuse = "hf"\nmodel = "old/{teacher.name}/final"'
        made("r.student", seed, more=taught, out=Path("old"))
        made("r.alone", seed, out=Path("old"))
    Path("old").rename("new")
    (found,) = rows("r.alone*", "r.student*", "--out", "new", "--at", "tokens")
    assert (found["arm"], found["seeds"]) == ("student", 3)


def test_values_that_all_compared_arms_have_are_not_in_their_labels():
    points = []
    for seed in range(3):
        for stage, loss, lr, control in (
            ("all", "kl", 1, None),
            ("rho", "kl", 1, None),
            ("rho", "kl", 2, None),
            ("all", "ce", 1, "no-teacher"),
        ):
            folder = made(f"r.{stage}", seed, (3.0, 2.0), loss=loss, more=f"lr = {lr}")
            sets = {"seed": seed, "loss.1.use": "kl", "train.lr": lr}
            points.append({"sets": sets, "control": control, "stage": stage, "run": folder.name})
    Path("runs/sweep.json").write_text(json.dumps({"points": points}))
    at = ("--at", "tokens")
    assert [row["arm"] for row in rows("r.*", *at, "--baseline", "no-teacher")] == [
        "r.all train.lr=1",
        "r.rho train.lr=1",
        "train.lr=2",
    ]
    alike = [str(Path("runs") / each["run"]) for each in points if each["sets"]["train.lr"] == 1]
    found = rows(*alike, *at, "--baseline", "r.all")
    assert {(row["baseline"], row["arm"]) for row in found} == {
        ("r.all", "r.rho"),
        ("r.all", "no-teacher"),
    }
    assert rows("r.*", *at, "--baseline", "loss.1.use=kl train.lr=2")[0]["baseline"] == (
        "train.lr=2"
    )


def test_a_broken_sweep_file_is_as_none_and_said(caplog):
    arms()
    for text in ('{"points": [3', "[]", '{"points": 3}'):
        Path("runs/sweep.json").write_text(text)
        caplog.clear()
        assert len(rows("r.*", "--baseline", "ce")) == 2
        assert "runs/sweep.json is damaged: arms are named by their settings" in caplog.text


# Refused in a sentence


def test_one_run_and_one_arm_are_nothing_to_compare():
    folder = made("r.ce", 0)
    assert "at least two runs" in asked(folder, code=2)
    made("r.ce", 1)
    assert "differ only in the seed" in asked("r.*", code=2)


def test_an_unknown_metric_lists_those_there_are():
    arms(seeds=1)
    said = asked("r.*", "--metric", "eval/nl", code=2)
    assert "no run measured 'eval/nl'; they measured eval/nll; did you mean 'nll'?" in said
    assert "did you mean" not in asked("r.*", "--metric", "accuracy", code=2)


def test_a_run_that_lacks_the_metric_is_named():
    made("r.ce", 0, scores=lambda nll: {"blimp": 0.5})
    folder = made("r.kd", 0, loss="kl")
    assert f"{folder} has not measured eval/blimp" in asked("r.*", "--metric", "blimp", code=2)


def test_which_way_is_better_may_be_said():
    for seed in range(3):
        made("r.ce", seed, (3.0, 2.0), scores=lambda nll: {"speed": 2.0, "wer": 2.0})
        made("r.kd", seed, (3.0, 2.0), loss="kl", scores=lambda nll: {"speed": 1.0, "wer": 1.0})

    def verdict(metric, *more):
        (row,) = rows("r.*", "--baseline", "ce", "--metric", metric, "--at", "tokens", *more)
        return row["verdict"]

    assert verdict("speed") == "worse" and verdict("speed", "--better", "lower") == "better"
    assert verdict("wer") == "better" and verdict("wer", "--better", "higher") == "worse"
    said = asked("r.*", "--baseline", "ce", "--metric", "speed", "--better", "lower")
    assert "speed, lower is better: against ce" in said


def test_other_tokenizers_are_refused_and_bits_per_byte_named():
    arms(tokenizer="another", scores=lambda nll: {"bits_per_byte": nll / 4})
    assert "compare --metric eval/bits_per_byte instead" in asked("r.*", code=2)
    said = asked("r.*", "--metric", "eval/bits_per_byte", code=2)
    assert "has not measured" in said


def test_other_held_out_rows_are_refused():
    made("r.ce", 0, eval_seed=0, kept=False)
    made("r.kd", 0, loss="kl", eval_seed=1, kept=False)
    assert "other held-out rows" in asked("r.*", code=2)


def test_equal_time_on_other_devices_is_refused_and_tokens_still_compared():
    arms(device="another processor")
    tokens, time = rows("r.*", "--baseline", "ce")
    assert tokens["verdict"] == "better"
    assert "ran on different devices (a processor, threads: 1; another" in time["refused"]
    assert "not compared: " in asked("r.*")
    assert "--at tokens compares them" in asked("r.*", "--at", "time", code=2)


def test_a_run_twice_is_refused():
    made("r.ce", 0)
    made("r.kd", 0, loss="kl")
    made("r.kd", 0, loss="kl", out=Path("elsewhere"))
    assert "both have seed 0" in asked("r.*", *Path("elsewhere").iterdir(), code=2)


def test_a_run_that_diverged_is_refused():
    arms(seeds=3)
    folder = made("r.kd", 3, (3.0, 2.0, None), loss="kl")
    made("r.ce", 3)
    said = asked("r.*", code=2)
    assert f"{folder} diverged: eval/nll is not finite at step 100" in said


def test_damaged_documents_are_refused():
    arms(seeds=1)
    path = next(Path("runs").glob("r.kd*/documents/step-100*"))
    path.write_bytes(path.read_bytes()[:-1])
    assert "not what the run measured" in asked("r.*", code=2)


@pytest.mark.parametrize("margin", ["x", "-1", "1%%", "nan", "inf"])
def test_a_margin_that_is_none(margin):
    arms(seeds=1)
    assert "is not a margin" in asked("r.*", "--margin", margin, code=2)


# Formats


def test_csv_has_a_row_for_each_arm_and_place():
    arms()
    found = list(csv.DictReader(io.StringIO(asked("r.*", "--baseline", "ce", "--format", "csv"))))
    assert [row["at"] for row in found] == ["tokens", "time"]
    assert float(found[0]["difference"]) == rows("r.*", "--baseline", "ce")[0]["difference"]


def test_markdown_and_latex():
    arms()
    table = asked("r.*", "--baseline", "ce", "--format", "markdown")
    assert table.count("\n| kd | 5 | 0.8001 ± 0.0160 | 1.0000 ± 0.0158 | -0.1999 |") == 2
    latex = asked("r.*", "--baseline", "ce", "--format", "latex")
    assert latex.count(r"\begin{tabular}{lrrrrrl}") == latex.count(r"\end{tabular}") == 2
    assert r"1.0000 $\pm$ 0.0158" in latex and r"95 \% interval" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") - line.count(r"\&") for line in body} == {6}
    assert "one of them" in asked("r.*", "--format", "csv", "--json", code=2)


def test_names_of_arms_are_in_one_line_and_safe_in_latex():
    for seed in range(3):
        made("r.ce", seed)
        made("r.kd", seed, more='template = """<a>^|\nb~"""')
        made("r.kd", seed, more="template = 'c'")
    named = ("r.*", "--baseline", "ce", "--at", "tokens", "--format")
    latex, markdown = (asked(*named, form) for form in ("latex", "markdown"))
    rows = [line for line in latex.splitlines() if line.startswith("kd")]
    safe = (
        r"train.template=\textless{}a\textgreater{}\textasciicircum{}\textbar{} b\textasciitilde{}"
    )
    assert [row.partition(" &")[0] for row in rows] == [f"kd  {safe}", "kd  train.template=c"]
    assert all(line[0] in "\\%ak" for line in latex.splitlines() if line)
    assert markdown.count(r"| kd  train.template=<a>^\| b~ | 3 |") == 1


def test_arms_without_a_seed_in_common_are_said_to_have_none():
    for seed in range(3):
        made("r.ce", seed)
        made("r.kd", seed + 3, loss="kl")
    row = rows("r.*", "--baseline", "ce")[0]
    assert (row["seeds"], row["verdict"], row["low"]) == (0, None, None)
    assert row["reason"].startswith("no seed in common")
    assert "so they cannot be compared" in asked("r.*", "--baseline", "ce")


def test_weights_that_an_arm_began_with_and_unfinished_runs_are_said():
    arms(seeds=3)
    for folder in Path("runs").glob("r.kd*"):
        path = folder / "resolved.toml"
        began = '[student]\nmodel = "runs/r.first-12345678/final"\n'
        path.write_text(path.read_text().replace('[student.config]\nmodel_type = "llama"\n', began))
    (next(Path("runs").glob("r.ce*")) / "final").rmdir()
    said = asked("r.*", "--baseline", "ce")
    assert "kd: kd began with the weights of r.first-12345678, whose cost is not counted" in said
    assert "unfinished: r.ce-" in said and "is at step 100" in said
    assert re.search(r"as random\)\. Unfinished: r\.ce-\w+ is at step 100\.$", said, re.M)


def test_failed_runs_are_said_to_have_failed():
    arms(seeds=3)
    folder = next(Path("runs").glob("r.ce*"))
    (folder / "final").rmdir()
    for why, said in (("step 2 is not finite", "failed"), ("interrupted after step 3", "is")):
        (folder / "failure.txt").write_text(f"{why}\n")
        assert f"unfinished: {folder.name} {said} at step" in asked("r.*", "--baseline", "ce")


def test_weights_that_both_arms_began_with_are_not_said():
    arms(seeds=3)
    for path in Path("runs").glob("r.*/resolved.toml"):
        began = '[student]\nmodel = "runs/r.first-12345678/final"\n'
        path.write_text(path.read_text().replace('[student.config]\nmodel_type = "llama"\n', began))
    assert "began with" not in asked("r.*", "--baseline", "ce")


def test_equal_scores_in_all_pairs_are_said():
    arms(shift=0.0, jitter=0.0)
    said = asked("r.*", "--baseline", "ce", "--at", "tokens")
    assert "kd: each pair has the same score twice: what differs has no effect" in said


@pytest.mark.parametrize(
    ("schedule", "early"),
    [("", True), ('schedule = "linear"', True), ('schedule = "constant"', False)],
)
def test_an_arm_that_is_read_before_its_rate_has_fallen_is_said(schedule, early):
    for seed in range(3):
        made("r.ce", seed, (3.0, 2.0, 1.5, 1.0), tokens=2000, more=schedule)
        made("r.kd", seed, (3.0, 1.0), loss="kl")
    said = asked("r.*", "--baseline", "ce", "--at", "tokens")
    assert ("ce is read after 50% of its tokens, before its learning rate" in said) is early
    assert "kd is read after" not in said


def test_pairs_that_are_read_at_different_tokens_have_a_range():
    for seed in range(3):
        made("r.ce", seed, (3.0, 1.0 + seed), tokens=1000 + 200 * seed)
        made("r.kd", seed, (3.0, 1.5 + seed), tokens=1000 + 200 * seed, loss="kl")
    assert "kd: after 1,000 to 1,400 tokens" in asked("r.*", "--baseline", "ce", "--at", "tokens")


def halves():
    """Three seeds of two arms: the arm is better on the first three documents, worse on others."""
    for seed in range(3):
        made("r.ce", seed, (3.0, BASE[seed]))
        folder = made("r.kd", seed, (3.0, BASE[seed]), loss="kl")
        kept = documents(BASE[seed])
        shift = np.array([-0.1, -0.1, -0.1, 0.2, 0.2, 0.2], np.float32)
        replace(kept, nll=kept.nll + shift * kept.tokens).save(folder, 50)
        keep(folder, DOCUMENTS, folder / DOCUMENTS)


def test_half_of_the_documents_can_be_compared():
    halves()
    first, second = (
        rows("r.*", "--baseline", "ce", "--at", "tokens", "--documents", half)[0]
        for half in ("first", "second")
    )
    assert first["difference"] == pytest.approx(-0.1, abs=1e-5)
    assert second["difference"] == pytest.approx(0.2, abs=1e-5)
    assert (first["documents"], second["documents"]) == (3, 3)
    said = asked("r.*", "--baseline", "ce", "--documents", "first")
    assert "validation loss (nats per token) on the first half of the documents" in said


def test_a_half_is_interpolated_like_the_whole():
    made("r.ce", 0, (3.0, 1.0), tokens=1000)
    made("r.kd", 0, (3.0, 2.0, 1.0), loss="kl", tokens=2000)
    made("r.x", 0, (3.0, 2.0), loss="x", tokens=500)
    whole = rows("r.*", "--baseline", "ce")
    half = rows("r.*", "--baseline", "ce", "--documents", "second")
    assert [row["difference"] for row in half] == pytest.approx(
        [row["difference"] for row in whole], abs=1e-5
    )


def test_a_half_needs_losses_of_documents():
    arms(kept=False)
    said = asked("r.*", "--baseline", "ce", "--documents", "first", code=2)
    assert "has no eval/nll of each document: --documents compares eval/nll" in said
