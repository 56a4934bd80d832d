"""Columns from a file to a term: checked before a run, and compared when it resumes."""

import json
import shutil
from pathlib import Path

import pytest
import whole_runs
from kdcore_losses import CrossEntropy

from kdcore import RecipeError, RunError, UsageError
from kdcore.plugin.manager import PluginManager
from kdcore.runs.open import begun, open_stage

pytestmark = pytest.mark.slow

TEXTS = [f"{'plus and minus' if n % 2 else 'once upon a time'} {n} times over" for n in range(24)]


@pytest.fixture
def host():
    return PluginManager(off=["panel"])


def written(domain=lambda n: "math" if n % 2 else "prose", texts=TEXTS):
    lines = [json.dumps({"text": text, "domain": domain(n)}) for n, text in enumerate(texts)]
    Path("a.jsonl").write_text("\n".join(lines))


def recipe(where='{domain = "math"}', keep='["domain"]', path="a.jsonl"):
    text = whole_runs.RECIPE.replace('use = "stories"\nstories = 20\nvalidation = 4', DATA)
    text = text.replace("KEEP", keep).replace("PATH", path)
    return f'{text}where = {where}\n[[loss]]\nuse = "ce"\nweight = 0.5\n'


DATA = 'use = "text"\npath = "PATH"\nvalidation_share = 0.2\nkeep_columns = KEEP'


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written()


def test_a_term_of_one_domain(host):
    (folder,) = whole_runs.run(host, recipe())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (first, *_) = [line for line in lines if "loss/ce" in line]
    assert first["loss/ce"] != first["loss/ce.2"]
    assert 'mean_all[domain == "math"](CE(q(1), y))' in (folder / "final/README.md").read_text()
    assert 'domain = "math"' in (folder / "resolved.toml").read_text()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ('{domain = "law"}', r'domain = "law", and no document .* there are: "math", "prose"'),
        ('{domain = ["math", "law"]}', 'domain = "law", and no document'),
        ('{domain = "math", source = "student"}', r'source = "student", .* there are: "data"'),
    ],
)
def test_a_value_that_no_document_has_ends_the_run_before_it_begins(host, where, said):
    with pytest.raises(RunError, match=said):
        whole_runs.run(host, recipe(where))


def test_a_column_that_the_data_does_not_keep_is_seen_in_the_recipe(host):
    with pytest.raises(RecipeError, match="no document has the column 'domain'; there are: source"):
        whole_runs.run(host, recipe(keep="[]"))


def test_resuming_finds_that_columns_have_changed(host):
    (folder,) = whole_runs.run(host, recipe())
    shutil.rmtree(folder / "final")
    written(domain=lambda n: "prose" if n % 2 else "math")
    with pytest.raises(UsageError, match=r"begun with something else: columns: was domain: .* is "):
        whole_runs.run(host, recipe())
    whole_runs.run(host, recipe(), accept=frozenset(["columns"]))


def test_unused_columns_may_change(host):
    (folder,) = whole_runs.run(host, recipe('{source = "data"}'))
    shutil.rmtree(folder / "final")
    written(domain=lambda n: "other")
    assert whole_runs.run(host, recipe('{source = "data"}')) == [folder]


def test_of_a_stream_a_warning_tells_what_the_first_rows_do_not_have(host, caplog):
    text = recipe('{domain = "law"}').replace("block = 32", "block = 32\nstreaming = true")
    whole_runs.run(host, text)
    assert 'domain = "law"' in caplog.text and "in the first" in caplog.text


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("{}", "where"),
        ("{domain = []}", "where"),
        ("{domain = true}", "where"),
        ('"math"', "where"),
    ],
)
def test_an_invalid_where_is_reported(host, where, said):
    with pytest.raises(RecipeError, match=said):
        whole_runs.run(host, recipe(where))


EVAL = '[[eval]]\nuse = "perplexity"\nby = "domain"\n'


def test_an_eval_tells_by_a_column(host):
    text = recipe().replace("block = 32", 'block = 32\nrows = "one"')
    (folder,) = whole_runs.run(host, text + EVAL)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "eval/nll" in line][-1]
    run = open_stage(begun(folder, host))
    rows = run.rows("validation")
    found = run.evaluate(rows, [CrossEntropy()], by="domain")
    compared = 0
    for domain in ("math", "prose"):
        mine = [n for n in range(len(rows)) if rows[n]["columns"][0]["domain"] == domain]
        alone = run.evaluate(rows.subset(mine), [CrossEntropy()]) if mine else {"tokens": 0}
        for name, value in alone.items():
            assert found[f"{name}/{domain}"] == pytest.approx(value)
        if mine:
            compared += 1
            expected = alone["nll"] / alone["tokens"]
            assert last[f"eval/nll/{domain}"] == pytest.approx(expected, rel=1e-5)
            assert {f"eval/perplexity/{domain}", f"eval/bits_per_byte/{domain}"} <= last.keys()
    assert compared and "agreement/math" not in found


def test_an_eval_by_a_column_that_is_not_kept_is_an_error(host):
    text = recipe('{source = "data"}', keep="[]") + EVAL
    with pytest.raises(RecipeError, match="no document has the column 'domain'"):
        whole_runs.run(host, text)


def test_columns_that_only_evals_read_may_change(host):
    text = recipe('{source = "data"}') + EVAL
    (folder,) = whole_runs.run(host, text)
    shutil.rmtree(folder / "final")
    written(domain=lambda n: "other")
    assert whole_runs.run(host, text) == [folder]
