"""`kdcore show --tokens`: what was kept, dropped and never valid, in every form."""

import io
import json
import math
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import typer
from recorded_runs import drawn, expect, keep_run
from rich.console import Console
from typer.testing import CliRunner
from whole_runs import recipe_text

from kdcore import UsageError
from kdcore.analysis.rows import SelectedRow
from kdcore.commands.rows import tokens as verb
from kdcore.commands.rows.html import as_html
from kdcore.commands.rows.looking import states_of
from kdcore.commands.rows.page import Page, ShownRow, Side, Token
from kdcore.commands.rows.terminal import OnTerminal
from kdcore.commands.show import show

pytestmark = pytest.mark.slow

TOKENIZER = tiny.byte_tokenizer(tiny.TEXTS * 3, 400)
ROWS = ["Once upon a time there was a small fox.\nShe had a red kite,", "“Naïve?” asked 東京 <b>&"]
TABLE = {"selection": {"use": "rho", "keep": 0.5, "reference": {"use": "hf", "model": "a/b"}}}


def chosen(text, share, seed=0, selects=True):
    """A row of two documents of which a share was kept."""
    first, last = text[: len(text) // 2], text[len(text) // 2 :]
    ids = [TOKENIZER.encode(part, add_special_tokens=False) for part in (first, last)]
    ids[0].append(TOKENIZER.eos_token_id)
    document = np.repeat([6, 1233], [len(part) for part in ids])
    valid = np.diff(document, prepend=-1) == 0
    angles = np.arange(len(valid)) * (2 + seed / 60)
    nll = np.where(valid, 5 + 4 * np.cos(angles), np.nan)
    score = np.where(valid, np.sin(angles) + len(text) / 100, np.nan)
    kept = valid & (score > np.nanquantile(score, 1 - share)) if selects else valid
    if not selects:
        score = np.full(len(valid), np.nan)
    return SelectedRow(np.concatenate(ids), document, valid, kept, nll, score)


def fake_run(step, table=TABLE, scope="step", steps=40):
    stage = SimpleNamespace(table=table, scope=scope)
    return SimpleNamespace(step=step, steps=steps, recipe=stage, tokenizer=TOKENIZER)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A run of which every checkpoint can be opened; what was asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    keep_run("runs", "mine.rho-1a2b3c4d")
    asked = SimpleNamespace(opened=[], of_steps=[], table=TABLE, scope="step", final=40)

    def begun(folder, host, *, step, sets, evals):
        asked.opened.append((folder.name, step, [*sets], evals))
        return fake_run(asked.final if step is None else step, asked.table, asked.scope)

    def chosen_rows(run, of_step):
        asked.of_steps.append(of_step)
        selects = "selection" in run.recipe.table
        return [chosen(text, 0.5, run.step, selects) for text in (*ROWS, "x" * 30)]

    monkeypatch.setattr(verb, "begun", begun)
    monkeypatch.setattr(verb, "open_stage", lambda request: request)
    monkeypatch.setattr(verb, "selected_rows", chosen_rows)
    return asked


def said(capsys, **options):
    show(["mine"], tokens=True, **options)
    return capsys.readouterr().out


# ---- on the terminal ---------------------------------------------------------------


def test_one_checkpoint(runs, capsys):
    expect("tokens_80", said(capsys, rows=2, steps=[10]))
    assert runs.opened == [("mine.rho-1a2b3c4d", 10, [], [])] and runs.of_steps == [11]


def test_with_scores(runs, capsys):
    expect("tokens_scores_80", said(capsys, rows=1, steps=[10], scores=True))


@pytest.mark.parametrize("width", [80, 140])
def test_two_checkpoints_see_the_same_rows(runs, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = said(capsys, rows=1, steps=[10, 30, 10])
    assert runs.of_steps == [11, 11] and [step for _, step, *_ in runs.opened] == [10, 30]
    assert max(map(len, text.splitlines())) <= width
    expect(f"tokens_two_{width}", text)


def test_two_checkpoints_with_scores(runs, capsys):
    expect("tokens_two_scores_80", said(capsys, rows=1, steps=[10, 30], scores=True))


def test_without_a_selection_everything_is_kept(runs, capsys):
    runs.table = {}
    text = said(capsys, rows=1, scores=True)
    assert "keeps    every valid token: the run has no selection" in text
    assert "(100 %)" in text and "0 (0 %)" in text and "loss in nats, with *" in text
    assert "\nnll " in text and "\nscore" not in text


def test_the_rows_of_the_last_step_for_the_finished_weights(runs, capsys):
    text = said(capsys)
    assert runs.opened == [("mine.rho-1a2b3c4d", None, [], [])] and runs.of_steps == [40]
    assert "all 3 of training step 40" in text and "weights  after step 40\n" in text


def test_the_rows_of_another_step(runs, capsys):
    text = said(capsys, steps=[10], of_step=3, sets=["selection.keep=0.1"])
    assert "training step 3" in text and runs.of_steps == [3]
    assert runs.opened[0][2] == ["selection.keep=0.1"]
    with pytest.raises(UsageError, match=r"--of-step 41: .*mine.rho-1a2b3c4d has 40 training"):
        said(capsys, of_step=41)


def test_a_finished_run_without_checkpoints(runs, capsys):
    runs.final = 0
    said(capsys)
    assert runs.of_steps == [40]


def test_a_run_that_chose_in_micro_batches_is_reported_apart(runs, capsys):
    runs.scope = "micro_batch"
    assert "each micro-batch by itself" in " ".join(said(capsys).split())


def colours(page, **options):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard", **options)
    console.print(OnTerminal(page))
    return file.getvalue()


def a_page(*sides):
    rows = [ShownRow("row 1", {0: "document 1"}, [Side(f"s{n}", s) for n, s in enumerate(sides)])]
    return Page("mine", [], [(None, ""), ("kept", "kept")], [["", "2"]], rows)


def some(states, texts="abcdefgh"):
    return [Token(n, texts[n], state) for n, state in enumerate(states)]


def test_colours_or_marks(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    page = a_page(some(["first", "kept", "kept", "dropped", "prompt"]))
    coloured = colours(page)
    assert "\x1b[30;42mb\x1b[0m\x1b[30;42mc\x1b[0m\x1b[31md\x1b[0m" in coloured
    assert "⟦" not in coloured
    assert "⟨a⟩⟦bc⟧d⟨e⟩" in colours(page, no_color=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟨a⟩⟦bc⟧d⟨e⟩" in colours(page) and "\x1b[3" not in colours(page)
    assert "⟨a⟩⟦bc⟧d⟨e⟩" in drawn(OnTerminal(page), 80)


def test_what_differs_is_marked():
    page = a_page(
        some(["first", "kept", "kept", "dropped", "kept"]),
        some(["first", "kept", "dropped", "dropped", "dropped"]),
    )
    plain = drawn(OnTerminal(page), 110)
    assert "⟨a⟩⟦b▸c◂⟧d⟦▸e◂⟧" in plain and "⟨a⟩⟦b⟧▸c◂d▸e◂" in plain
    assert "\x1b[1;4;30;42mc" in colours(page) and "\x1b[1;4;31mc" in colours(page)


def test_a_letter_of_several_tokens_is_shown_once():
    texts = ["a", "", "", "東", "b"]
    alike = some(["first", "kept", "kept", "kept", "dropped"], texts)
    assert "⟨a⟩⟦東⟧b" in drawn(OnTerminal(a_page(alike)), 80)
    apart = some(["first", "kept", "dropped", "kept", "dropped"], texts)
    assert "⟨a⟩⟦~東⟧b" in drawn(OnTerminal(a_page(apart)), 80)
    below = drawn(OnTerminal(a_page(alike), scores=True), 80)
    assert below.count("⋯") == 2 and "東" in below


def test_control_characters_do_not_reach_the_terminal():
    page = a_page(some(["first", "kept", "kept"], ["\x1b[31m", "\x07\t", "x\n"]))
    assert "⟨␛[31m⟩⟦␇␉x↵" in drawn(OnTerminal(page), 80)
    assert "x↵" in drawn(OnTerminal(page, scores=True), 80)


def test_blanks_can_be_seen_above_the_numbers():
    page = a_page(some(["first", "kept"], ["Once", " upon a very long time"]))
    assert "␣upon␣a␣very␣…" in drawn(OnTerminal(page, scores=True), 80)


# ---- the states --------------------------------------------------------------------


def test_prompts_and_what_nothing_stands_before():
    row = chosen(ROWS[0], 0.5)
    row.valid[3:5] = row.kept[3:5] = False
    states = states_of(row, {"kept": row.kept, "dropped": row.valid & ~row.kept})
    border = int(np.flatnonzero(row.document == 1233)[0])
    assert states[0] == states[border] == "first"
    assert states[3:5] == ["prompt", "prompt"] and states.count("prompt") == 2
    assert states.count("kept") == row.kept.sum()


# ---- as a page ---------------------------------------------------------------------


class Balanced(HTMLParser):
    """Every element ends that began, in order, but for those that HTML lets end by themselves."""

    FREE = frozenset({"meta", "tr", "td", "th"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.titles, self.text = [], set(), [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.titles += [value for name, value in attributes if name == "title"]
        assert not [name for name, _ in attributes if name in ("src", "href")]
        if tag not in self.FREE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in self.FREE or self.open.pop() == tag

    def handle_data(self, data):
        if "pre" in self.open:
            self.text.append(data)


def test_a_page_of_a_run(runs, capsys, tmp_path):
    text = said(capsys, steps=[10, 30], html=tmp_path / "rows.html", scores=True)
    assert text == ""
    page = Balanced((tmp_path / "rows.html").read_text(encoding="utf-8"))
    assert {"u", "i", "span", "b", "title", "style"} <= page.tags and "script" not in page.tags
    shown = "".join(page.text).replace("↵", "")
    assert shown.count("Once upon a time") == 2 and "ked 東京 <b>&" in shown
    assert any(title.startswith("kept, id ") and ", score " in title for title in page.titles)


def test_text_that_looks_like_html_stays_text():
    texts = ["</pre><script>alert(1)</script>", '"&<', "\x00\x1b", "ok\n"]
    page = a_page(some(["first", "kept", "dropped", "kept"], texts))
    html = as_html([page])
    assert "<script" not in html and "\x00" not in html
    assert "".join(Balanced(html).text) == "".join(texts[:2]) + "␀␛ok↵\n"


def test_a_page_says_the_numbers_only_if_they_are_asked_for():
    page = a_page([Token(5, "a", "kept", nll=1.234, score=-0.5), Token(6, "b", "prompt")])
    assert Balanced(as_html([page])).titles == ["kept, id 5", "prompt, id 6"]
    titles = Balanced(as_html([page], scores=True)).titles
    assert titles == ["kept, id 5, nll 1.23, score -0.50", "prompt, id 6"]


def test_a_page_can_be_read_without_its_style():
    html = as_html([a_page(some(["first", "kept", "dropped"]), some(["first", "kept", "kept"]))])
    row = html[html.index("<section") :]
    assert '<i class="never" title="first, id 0">a</i>' in row
    assert '<u class="kept" title="kept, id 1">b</u>' in row
    assert '<b><span class="dropped" title="dropped, id 2">c</span></b>' in row


def test_a_page_that_cannot_be_written(runs, capsys, tmp_path):
    with pytest.raises(UsageError, match=r"cannot write .*/gone/x\.html: No such file"):
        said(capsys, html=tmp_path / "gone" / "x.html")


# ---- for programs ------------------------------------------------------------------


def test_an_object_for_each_row_and_checkpoint(runs, capsys):
    objects = json.loads(said(capsys, rows=2, steps=[10, 30], as_json=True))
    assert [(one["row"], one["weights_after_step"]) for one in objects] == [
        (1, 10),
        (1, 30),
        (2, 10),
        (2, 30),
    ]
    for one in objects:
        columns = [one[key] for key in ("tokens", "text", "state", "nll", "score", "document")]
        assert len(set(map(len, columns))) == 1
        valid = [state in ("kept", "dropped") for state in one["state"]]
        assert valid == [nll is not None for nll in one["nll"]]
        assert valid == [score is not None for score in one["score"]]
        assert one["of_step"] == 11 and math.isfinite(one["threshold"])
        assert set(one["document"]) == {7, 1234}
    assert "".join(objects[2]["text"]).replace("<|end|>", "") == ROWS[1]


# ---- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"tokens": True}, "show --tokens takes one run"),
        ({"runs": ["a", "b"], "tokens": True}, "show --tokens takes one run"),
        ({"runs": ["a"], "tokens": True, "data": True}, "give one of them"),
        ({"runs": ["a"], "tokens": True, "as_csv": True}, "--csv has no place for rows"),
        ({"runs": ["a"], "tokens": True, "stage": "x"}, "--stage needs --data"),
        ({"runs": ["a"], "data": True, "of_step": 3}, "--of-step needs --tokens"),
        ({"runs": ["a"], "steps": [3]}, "--step needs --tokens"),
        ({"runs": ["a"], "sets": ["a=b"]}, "--set needs --tokens or --data"),
        ({"runs": ["a"], "plugins": ["no:x"]}, "-p needs --tokens or --data"),
        ({"split": "validation"}, "--split needs --data"),
        ({"runs": ["gone"], "tokens": True}, "there is no run 'gone'"),
    ],
)
def test_what_cannot_be_shown(tmp_path, monkeypatch, options, fault):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=fault):
        show(**options)


# ---- a run that ran ----------------------------------------------------------------

RECIPE = recipe_text(
    {
        "name": "ran",
        "tokenizer.vocab_size": 300,
        "data.stories": 30,
        "data.validation": 5,
        "student.config.intermediate_size": 32,
        "train.eval_every": 4,
        "train.eval_rows": 8,
    },
    """\
[selection]
use = "hardest"
keep = 0.25
""",
)


@pytest.mark.slow
def test_the_verb_on_a_run(tmp_path):
    from kdcore.plugin.manager import PluginManager
    from kdcore.runs.runner import RunRequest, run_all

    (tmp_path / "ran.toml").write_text(RECIPE)
    run_all(RunRequest(str(tmp_path / "ran.toml"), tmp_path / "runs"), PluginManager(off=["panel"]))
    app = typer.Typer()
    app.command()(show)

    def typed(*words):
        command = ["--tokens", "ran", "--out", str(tmp_path / "runs"), *words]
        return CliRunner().invoke(app, command, catch_exceptions=False)

    rows = json.loads(typed("--step", "2", "--step", "4", "--rows", "99", "--json").stdout)
    assert len(rows) == 8 and {row["of_step"] for row in rows} == {3}
    for step in (2, 4):
        mine = [row for row in rows if row["weights_after_step"] == step]
        pairs = [pair for row in mine for pair in zip(row["nll"], row["state"], strict=True)]
        kept = [nll for nll, state in pairs if state == "kept"]
        dropped = [nll for nll, state in pairs if state == "dropped"]
        assert len(kept) == math.ceil(0.25 * len(kept + dropped))
        assert min(kept) == mine[0]["threshold"] >= max(dropped)
    assert "⟦" in typed().stdout
    with pytest.raises(UsageError, match="no checkpoint of step 3; it has those of 2, 4"):
        typed("--step", "3")
