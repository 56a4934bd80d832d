"""From an address and a JSONL to a student, across tokenizers and chat templates."""

import json
from pathlib import Path

import chats
import pytest
import tiny
import tomli
import torch
from stub_server import Stub, serving
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import kdcore
from kdcore.cli.main import app

CHATML = chats.chat_tokenizer()
STEPS = ("--set", "data.block=96", "--set", "eval=[]", "--set", "train.batch=4")
SHAPE = {"vocabulary": len(CHATML), "hidden_size": 64, "intermediate_size": 128}


def inst_tokenizer():
    """Other ids, other special tokens and another template than ChatML's."""
    made = tiny.byte_tokenizer(["who is fox? of a wolf in a story, and so on"], 330, eos="</s>")
    made.add_special_tokens({"bos_token": "<s>"})
    made.chat_template = chats.LLAMA
    return made


def call(*words):
    done = CliRunner().invoke(app, list(words), catch_exceptions=False, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A teacher that has learned the dialogues of chat.jsonl in its own template."""
    monkeypatch.chdir(tmp_path)
    records = [chats.ask(f"who is {n}?", f"it is fox {n}.") for n in range(100)]
    Path("chat.jsonl").write_text("\n".join(map(json.dumps, records)))
    tiny.save(tmp_path / "student", tokenizer=CHATML, **SHAPE)
    inst = inst_tokenizer()
    tiny.save(tmp_path / "blank", tokenizer=inst, **SHAPE | {"vocabulary": len(inst), "seed": 1})
    taught = kdcore.run(
        {
            "name": "taught",
            "student": {"model": "blank"},
            "data": {"use": "sft", "path": "chat.jsonl", "block": 96, "validation_share": 0.05},
            "loss": [{"use": "ce"}],
            "train": {"lr": 5e-3, "steps": 200, "batch": 4},
            "eval": [],
        }
    )
    final = (taught.folder / "final").resolve()
    made = Stub(AutoModelForCausalLM.from_pretrained(final).eval(), "big", length=513)
    made.root, made.tokenizer = str(final), inst
    return made


def share_that_ends(folder):
    """How many of the answers to questions of the data end before 40 tokens."""
    model, tokenizer = (
        each.from_pretrained(folder) for each in (AutoModelForCausalLM, AutoTokenizer)
    )
    end, ended = tokenizer.convert_tokens_to_ids("<|im_end|>"), 0
    for n in range(0, 100, 2):
        asked = [{"role": "user", "content": f"who is {n}?"}]
        ids = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        said = model.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=end)
        ended += end in said[0, ids.shape[1] :].tolist()
    return ended / 50


@pytest.mark.slow
def test_one_pass_feeds_six_runs_whose_students_end_their_answers(server):
    with serving(server) as url:
        begin = ("--teacher", url, "--student", "student", "--data", "chat.jsonl")
        call("new", "recipe", "mine.toml", *begin)
        call("cache", "build", "mine.toml", *STEPS[:4])
        asked = len(server.asked)
        call("cache", "build", "mine.toml", *STEPS[:4])
        assert len(server.asked) == asked
    more = ("--set", "train.lr=5e-3", "--set", "train.steps=200")
    call("run", "mine.toml", *STEPS, *more)
    (first,) = Path("runs").glob("mine-*/final")
    assert share_that_ends(first) >= 0.95
    table = tomli.loads(Path("mine.toml").read_text())
    table |= {"eval": [], "data": table["data"] | {"block": 96}}
    for n in range(5):
        train = {"steps": 2, "batch": 4, "lr": 1e-3 * (n + 1), "log_every": 1}
        found = kdcore.run(table | {"seed": n + 1, "name": f"mine{n}", "train": train})
        losses = [line["loss"] for line in found.metrics if line.get("loss") is not None]
        assert losses and torch.tensor(losses).isfinite().all()
    assert len(server.asked) == asked
