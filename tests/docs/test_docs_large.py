"""docs/large.md: its commands are typed, its SLURM script runs, and its table is what plan says."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import whole_runs
from documents import DOCS, snippets
from founding_hub import qwen_tokenizer
from nodes import free_port
from standin_hub import serving
from typer.testing import CliRunner

from kdcore.cli.launchers import join
from kdcore.cli.main import app

TEXT = (DOCS / "large.md").read_text(encoding="utf-8")
SNIPPETS = snippets("large.md")
COMMANDS = [line for each in SNIPPETS if each.language == "sh" for line in each.text.splitlines()]
(SCRIPT,) = [each.text for each in SNIPPETS if each.language == "bash"]
(RECIPE,) = [each.text for each in SNIPPETS if each.language == "toml"]
(TABLE,) = [each.text for each in SNIPPETS if each.language == "text"]
LAUNCHERS = [line for line in COMMANDS if " -m kdcore " in line]


def parsed(words):
    """What a launcher understands, and the arguments that it passes on."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        return get_args_parser().parse_args(words[1:])
    from accelerate.commands.launch import launch_command_parser

    assert words[:2] == ["accelerate", "launch"]
    return launch_command_parser().parse_args(words[2:])


@pytest.mark.parametrize("command", LAUNCHERS)
def test_launchers_understand_their_commands(command):
    found = parsed(shlex.split(command))
    assert found.module and found.training_script == "kdcore"
    assert found.training_script_args == ["run", "mine.toml"]


def test_other_commands_are_kdcore_s():
    rest = [command for command in COMMANDS if command not in LAUNCHERS]
    assert rest == ["kdcore run mine.toml --processes 8", "kdcore plan big.toml --gpus 16"]
    for command in rest:
        done = CliRunner().invoke(app, [*shlex.split(command)[1:2], "--help"])
        for option in re.findall(r"--\w+", command):
            assert option in done.output


def test_torchrun_leaves_options_behind_two_dashes_alone():
    words = shlex.split("torchrun --nproc-per-node 2 -m -- kdcore run mine.toml --log tracker")
    assert parsed(words).training_script_args == ["run", "mine.toml", "--log", "tracker"]
    assert "-m -- kdcore run mine.toml --log tracker`" in TEXT


def test_each_refusal_names_its_variables():
    from kdcore import UsageError

    for name in re.findall(r"`(RANK|LOCAL_RANK|MASTER_ADDR|MASTER_PORT)`", TEXT):
        with pytest.raises(UsageError, match=name):
            join({"WORLD_SIZE": "2"}, 1)


SRUN = """#!{python}
import os, subprocess, sys
nodes = [
    subprocess.Popen(sys.argv[1:], env=os.environ | {{"SLURM_NODEID": str(n), "SLURM_NNODES": "2",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(n)}})
    for n in range(2)
]
sys.exit(max(node.wait() for node in nodes))
"""


def program(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.slow
def test_the_script_runs_on_two_nodes(tmp_path):
    """With commands that answer as SLURM's do, one process a node, and a free port."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    program(binaries / "srun", SRUN.format(python=sys.executable))
    program(binaries / "scontrol", "#!/bin/sh\necho 127.0.0.1\n")
    (tmp_path / "mine.toml").write_text(whole_runs.RECIPE)
    script = SCRIPT.replace("--nproc-per-node 8", "--nproc-per-node 1")
    script = re.sub(r"export PORT=.*", f"export PORT={free_port()}", script)
    (tmp_path / "job.sh").write_text(script)
    path = os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "1"}
    environment = os.environ | job | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "job.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").glob("mine-*")
    assert json.loads((run / "checkpoints" / "step-4" / "state.json").read_text())["processes"] == 2


def config(hidden, inner, layers, heads):
    """Of Qwen3's dense models."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=False,
        architectures=["Qwen3ForCausalLM"],
    )


@pytest.mark.slow
def test_the_table_is_what_plan_says(tmp_path):
    """For models of the real shapes, from a hub that has no weights."""
    models = {"8B": config(4096, 12_288, 36, 32), "32B": config(5120, 25_600, 64, 64)}
    for name, each in models.items():
        folder = tmp_path / "hub" / "models" / "Qwen" / f"Qwen3-{name}"
        each.save_pretrained(folder)
        qwen_tokenizer().save_pretrained(folder)
    (tmp_path / "big.toml").write_text(RECIPE)
    (tmp_path / "corpus.txt").write_text("The old mill stands by a slow river.\n\n" * 400)
    with serving(tmp_path / "hub") as (address, _):
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
            "COLUMNS": "100",
        }
        done = subprocess.run(
            [sys.executable, "-m", "kdcore", "plan", "big.toml", "--gpus", "16"],
            **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
        )
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    wanted = [" ".join(line.split()) for line in TABLE.splitlines()]
    at = next(n for n, line in enumerate(lines) if line.startswith("each of several GPUs"))
    assert lines[at : at + len(wanted)] == wanted, done.stdout


def test_figures_are_said_to_be_predicted():
    assert "none of these figures is measured" in TEXT
    for name in re.findall(r"`(2026-[\w-]+\.md)`", TEXT):
        assert (DOCS.parent / "benchmarks" / "results" / name).exists()
