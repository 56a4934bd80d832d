"""The container file copies what the package is built from, and installs it as the README does."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
LINES = [
    line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_line_is_an_instruction():
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "ENV", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in LINES} <= known


def test_all_that_the_wheel_is_built_from_is_copied():
    copied = {word for line in LINES if line.startswith("COPY") for word in line.split()[1:-1]}
    assert all((ROOT / path).exists() for path in copied)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["only-include"], *wheel["force-include"]} <= copied
    assert {PROJECT["project"]["readme"], "pyproject.toml", "constraints.txt"} <= copied


def test_torch_is_installed_first_and_pinned():
    (run,) = [line for line in LINES if line.startswith("RUN pip")]
    torch, rest = run.split("&&")
    assert torch.rstrip().endswith(" torch") and "-c constraints.txt" in torch
    extras = re.search(r"\.\[([\w,]+)\]", rest)[1].split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def test_it_runs_as_any_user():
    assert [line for line in LINES if line.startswith("USER")] == ["USER kdcore"]
    assert LINES[-2] == 'ENTRYPOINT ["kdcore"]'
