"""The command line: ways out, what is loaded for what, and where messages go."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from whole_runs import RECIPE, STAGES

from kdcore.cli import main
from kdcore.errors import Interrupted, PluginError, RunError, UsageError
from kdcore.plugin.manager import PluginManager
from kdcore.training.signals import SIGNALS

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def signals():
    """As pytest has them, again afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def kdcore(monkeypatch, capsys):
    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdcore", *arguments])
        with pytest.raises(SystemExit) as out:
            main.main()
        said = capsys.readouterr()
        return out.value.code, said.out, said.err

    return called


def test_alone_it_says_where_to_begin(kdcore):
    code, out, _ = kdcore()
    assert code == 0
    lines = [line.split("  ")[0] for line in out.strip().splitlines()]
    assert lines == [
        "kdcore run quickstart",
        "kdcore recipes",
        "kdcore new recipe FROM [TO]",
        "kdcore new recipe --teacher MODEL --student MODEL|20M --data FILE",
        "",
        "kdcore new plugin NAME",
    ]


def test_every_verb_is_listed_with_what_it_does(kdcore):
    code, out, _ = kdcore("--help")
    assert code == 0
    for verb in ("run", "check", "plan", "show", "generate", "plugins", "recipes", "new", "env"):
        (line,) = [line for line in out.splitlines() if line[1:].strip().startswith(f"{verb} ")]
        assert len(line.strip("│ ")) > len(verb) + 10


def test_an_invalid_recipe_gives_2_and_every_error(kdcore):
    Path("r.toml").write_text("[train]\nlr = 0\nstep = 3\n")
    code, out, err = kdcore("check", "r.toml")
    assert (code, out) == (2, "")
    assert "r.toml:2:1: " in err and "r.toml:3:1: " in err and "did you mean" in err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["run", "quikstart"], "quickstart"),
        (["check", "nowhere.toml"], "nowhere.toml"),
        (["plan", "rho_qwem"], "rho_qwen"),
        (["show", "nothing"], "nothing"),
        (["new", "recipe", "quikstart"], "quickstart"),
        (["plugins", "pannel"], "panel"),
        (["generate", "nothing", "--prompt", "a"], "nothing"),
        (["run"], "RECIPE"),
        (["run", "quickstart", "--processes", "0"], "processes"),
        (["run", "quickstart", "-p", "./absent.py"], "absent.py"),
        (["run", "quickstart", "--set", "train.lr"], "train.lr"),
        (["run", "quickstart", "--each", "seed"], "seed"),
        (["run", "quickstart", "--stage", "pupil"], "pupil"),
        (["fly"], "fly"),
        (["run", "quickstart", "--learning_rate", "1"], "--set train.lr=VALUE"),
        (["plan", "quickstart", "--batch=1"], "--set train.batch=VALUE"),
        (["check", "quickstart", "--other", "1"], "--set K=V"),
    ],
)
def test_bad_arguments_give_2_and_say_what(kdcore, arguments, says):
    code, out, err = kdcore(*arguments)
    assert code == 2, err
    assert says in err + out
    assert "Traceback" not in err + out
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "error, code",
    [
        (UsageError("so"), 2),
        (RunError("so"), 1),
        (PluginError("so"), 3),
        (Interrupted("so", 15), 143),
        (Interrupted("so", 2), 130),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "runs"), 1),
        (ZeroDivisionError("so"), 3),
    ],
)
def test_every_error_has_its_exit_code_and_one_line(kdcore, monkeypatch, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(main, "plugin_manager", fail)
    found, _, err = kdcore("check", "quickstart")
    assert found == code
    if not isinstance(error, KeyboardInterrupt):  # who typed ^C knows why it ended
        assert err.startswith("kdcore: ") and err.count("\n") == 1


@pytest.mark.parametrize("when", ["plugin_manager", "_leave_processes"])
@pytest.mark.parametrize("instead", [None, ValueError("no shape")])
def test_an_interrupt_where_no_run_is_on(kdcore, monkeypatch, when, instead):
    """Also where C code of a library makes another error of it."""

    def meets_it(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if instead is None or when == "_leave_processes":
                raise
            raise instead from None
        raise AssertionError("went on")

    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(main, when, meets_it)
    assert kdcore("check", "quickstart")[0] == 130


@pytest.mark.parametrize(
    "error",
    [
        None,
        UsageError("so"),
        RunError("so"),
        Interrupted("so", 15),
        KeyboardInterrupt(),
        SystemExit(4),
    ],
)
def test_every_way_out_leaves_the_group_of_processes(kdcore, monkeypatch, error):
    """A process that ends within one may abort: 134 instead of its exit code."""
    import torch.distributed as group

    def within(*_):
        group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
        if error is not None:
            raise error
        return PluginManager(off=["panel"])

    monkeypatch.setattr(main, "plugin_manager", within)
    kdcore("check", "quickstart")
    assert not group.is_initialized()


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_a_run_prints_the_folders_of_its_stages(kdcore, quiet):
    Path("r.toml").write_text(STAGES)
    code, out, err = kdcore("run", "r.toml", "-p", "no:panel", *quiet)
    assert code == 0
    big, small = out.splitlines()
    assert Path(big).name.startswith("r.big-") and Path(small).name.startswith("r.small-")
    assert (Path(small) / "final").is_dir()
    assert "validation loss" in err
    assert kdcore("run", "r.toml", *quiet)[1] == out
    code, out, _ = kdcore("run", small, "--json", *quiet)
    record = json.loads(out)
    assert record["folder"] == small and record["runs"] == [
        {k: record[k] for k in ("folder", "scores")}
    ]
    assert record["scores"]["nll"] > 0


def test_what_was_done_before_a_failure_is_printed(kdcore):
    Path("r.toml").write_text(RECIPE)
    each = ("--each", "train.lr=1e-2,1e30", "--set", "train.clip=1e30")
    code, out, err = kdcore("run", "r.toml", "-p", "no:panel", *each)
    assert code == 1 and "1 of 2 failed" in err
    (folder,) = out.splitlines()
    assert (Path(folder) / "final").is_dir()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nobody-here/x"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "NAME"],
        ["check", "quickstart", "-p", "NAME"],
        ["check", "quickstart", "--set", "data={use='text', path='NAME'}"],
        ["check", "quickstart", "--set", "stage.kd.teacher.model=NAME"],
        ["run", "NAME"],
        ["run", "quickstart", "--out", "NAME", "--stage", "nowhere"],
        ["show", "NAME"],
        ["generate", "NAME", "--prompt", "a"],
        ["new", "recipe", "quickstart", "NAME"],
        ["cache", "ls", "--out", "NAME"],
    ],
)
def test_names_that_no_file_can_have(kdcore, arguments, name):
    code, out, err = kdcore(*(argument.replace("NAME", name) for argument in arguments))
    assert code in (0, 1, 2)
    assert "Traceback" not in out + err and "a bug" not in err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_a_gpus_memory_may_grow_in_segments_unless_the_user_says_how(monkeypatch, given, expected):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(main, "_exit_code", lambda: 0)
    with pytest.raises(SystemExit):
        main.main()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected


def test_plugins_are_blocked_by_the_environment_too(kdcore, monkeypatch):
    monkeypatch.setenv("KDCORE_PLUGINS_OFF", "losses, panel")
    code, _, err = kdcore("check", "quickstart")
    assert code == 2
    assert "losses" in err and "blocked" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, absent",
    [
        ("--help", {"torch", "transformers", "datasets", "urllib.request"}),
        ("recipes", {"torch", "transformers", "datasets"}),
        ("check quickstart rho_qwen", {"transformers", "datasets", "accelerate", "httpx2"}),
    ],
)
def test_what_is_not_loaded(arguments, absent):
    code = (
        "import sys\n"
        f"sys.argv = ['kdcore', *{arguments.split()!r}]\n"
        "from kdcore.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as out: assert out.code == 0, out.code\n"
        f"print(sorted({absent!r} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
