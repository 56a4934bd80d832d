"""`kdcore push`, as a process of its own that uploads to a stand-in for the hub."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import typer
from hub_user import user_of
from typer.testing import CliRunner

from kdcore import UsageError
from kdcore.commands.push import push

CARD = "---\nlibrary_name: transformers\ntags:\n- kdcore\n---\n\n# fox\n"

app = typer.Typer()
app.command()(push)


def lay_run(out, name, *, finished=True):
    folder = Path(out) / name
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text("")
    if finished:
        tiny.save(folder / "final")
        (folder / "final" / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "home").mkdir()
    with user_of(tmp_path / "hub", tmp_path / "home") as hub:
        yield hub


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_what_arrives_is_what_was_saved(hub):
    run = lay_run(hub.home / "runs", "fox-12345678")
    done = hub.kdcore("push", "fox", "owner/fox")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.environment['HF_ENDPOINT']}/owner/fox\n"
    assert files(hub.models / "owner" / "fox") == files(run / "final")
    commits = [line for line in hub.asked if "/commit/" in line]
    assert commits == ["POST /api/models/owner/fox/commit/main"]

    # A second time the repository is there already, and it is loaded under its name there.
    (run / "final" / "README.md").write_text(CARD + "another\n")
    assert hub.kdcore("push", "fox", "owner/fox").returncode == 0
    assert files(hub.models / "owner" / "fox") == files(run / "final")
    written = hub.kdcore("generate", "owner/fox", "--prompt", "Once", "--max-new-tokens", "3")
    assert written.returncode == 0 and written.stdout.startswith("Once"), written.stderr


@pytest.mark.slow
def test_a_private_repository(hub):
    lay_run(hub.home / "runs", "fox-12345678")
    assert hub.kdcore("push", "fox", "owner/hidden", "--private").returncode == 0
    assert hub.kdcore("push", "fox", "owner/hidden", "--private").returncode == 0
    assert hub.kdcore("push", "fox", "owner/open").returncode == 0
    before = files(hub.models / "owner" / "open")
    (hub.home / "runs" / "fox-12345678" / "final" / "README.md").write_text("secret")
    done = hub.kdcore("push", "fox", "owner/open", "--private")
    assert done.returncode == 2
    assert done.stderr.endswith("owner/open is there already and is public; leave out --private\n")
    assert files(hub.models / "owner" / "open") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "repository, changed, said",
    [
        (
            "owner/fox",
            {"HF_TOKEN": ""},
            "cannot push to 'owner/fox': the hub does not know you; type hf auth login, "
            "with a token that may write",
        ),
        (
            "locked/fox",
            {},
            "cannot push to 'locked/fox': you have no right to write there; name another owner, "
            "or type hf auth login, with a token that may write",
        ),
        ("owner/fox", {"HF_HUB_OFFLINE": "1"}, "is switched off by HF_HUB_OFFLINE"),
        ("owner/fox", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
    ],
    ids=["nobody", "another's", "offline", "unreachable"],
)
def test_what_the_hub_has_against_it_is_one_sentence(hub, repository, changed, said):
    lay_run(hub.home / "runs", "fox-12345678")
    hub.environment |= changed
    done = hub.kdcore("push", "fox", repository)
    assert done.returncode == 1
    assert said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not hub.models.exists()


@pytest.mark.slow
def test_a_card_that_the_hub_cannot_read(hub):
    run = lay_run(hub.home / "runs", "fox-12345678")
    (run / "final" / "README.md").write_text("no front\n")
    done = hub.kdcore("push", "fox", "owner/fox")
    assert done.returncode == 1
    assert done.stderr == "kdcore: cannot push to 'owner/fox': Invalid metadata in README.md.\n"


def typed(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(
    "repository", ["fox", "a/b/c", "/fox", "owner/", "own er/fox", "owner/fo--x", "owner/-fox"]
)
def test_what_is_no_repository(tmp_path, repository):
    lay_run(tmp_path, "fox-12345678")
    with pytest.raises(UsageError, match="is no repository on the hub; those are OWNER/NAME"):
        typed("fox", "--out", tmp_path, "--", repository)


def test_only_finished_runs(tmp_path):
    lay_run(tmp_path, "fox-12345678", finished=False)
    with pytest.raises(UsageError, match="is not finished and has no final model to push"):
        typed("fox", "owner/fox", "--out", tmp_path)
    shutil.rmtree(tmp_path / "fox-12345678")
    with pytest.raises(UsageError, match="there is no run 'fox'"):
        typed("fox", "owner/fox", "--out", tmp_path)


@pytest.mark.parametrize("base", ["models/fox", "/models/fox", "", None])
def test_an_adapter_to_a_model_of_this_machine(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "fox").mkdir(parents=True)
    run = lay_run(tmp_path, "fox-12345678")
    (run / "final" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": base})
    )
    with pytest.raises(UsageError, match=r"is an adapter to '.*', which exists only here"):
        typed("fox", "owner/fox", "--out", tmp_path)
