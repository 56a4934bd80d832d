"""docs/teachers.md: its recipes have no errors, its figures are the code's, its server is one."""

import http.server
import shlex
from threading import Event, Thread

import pytest
from documents import DOCS, snippets
from kdcore_cached.teacher import CachedTeacher
from kdcore_hf import HfTeacher
from own_models import lay_own_models
from typer.testing import CliRunner

from kdcore.cli.main import app
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

DOCUMENT = "teachers.md"
RECIPES = [each.text for each in snippets(DOCUMENT) if each.language == "toml"]


@pytest.mark.parametrize("text", RECIPES, ids=lambda text: text.splitlines()[0])
def test_recipes_have_no_errors(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stories.txt").write_text("One day a fox met a crow.\n" * 9)
    name = text.splitlines()[0].removeprefix("# ")
    (tmp_path / name).write_text(text)
    stage = read_recipe(name, PluginManager()).build("")
    assert stage.teacher is not None


def test_a_stored_token_takes_as_many_bytes_as_it_says():
    teacher = CachedTeacher(teacher=HfTeacher(model="some"), kind="topk", k=32)
    assert f"{teacher.bytes_per_token():.0f} bytes a token" in (DOCS / DOCUMENT).read_text()


@pytest.fixture
def address(monkeypatch):
    """Where the page's server listens, started by its own text."""
    script, started, ready = _tried("python")[0], [], Event()

    class Server(http.server.HTTPServer):
        def serve_forever(self):
            started.append(self)
            ready.set()
            super().serve_forever()

    monkeypatch.setattr(http.server, "HTTPServer", Server)
    monkeypatch.setattr("sys.argv", ["try_server.py", "./teacher", "0"])
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "log_message", lambda *_: None)

    def serve():
        try:
            exec(compile(script, "try_server.py", "exec"), {})
        finally:
            ready.set()

    def start():
        thread = Thread(target=serve)
        thread.start()
        ready.wait()
        return f"http://127.0.0.1:{started[0].server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def _tried(language):
    found = [each for each in snippets(DOCUMENT) if each.heading == "Try it without a GPU"]
    return [each.text for each in found if each.language == language]


@pytest.mark.slow
def test_the_server_to_try_answers_every_command(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    lay_own_models(tmp_path)
    server, commands = _tried("sh")
    assert server == "python try_server.py ./teacher 8000\n"
    url = address()
    for command in commands.splitlines():
        _, verb, *words = shlex.split(command.replace("http://127.0.0.1:8000", url))
        short = ["--set", "train.steps=2", "-p", "no:panel"] if verb == "run" else []
        said = CliRunner().invoke(app, [verb, *words, *short])
        assert said.exit_code == 0, said.output
