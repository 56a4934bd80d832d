"""Files that are no data: a run of them ends with 1 or 2 and why, and goes on with better ones."""

import json
import shutil
from pathlib import Path

import pytest
from fuzzing import a_world, cases, ended_cleanly, kdcore
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

ODD = [b"", b"\0", b"\n", b" ", b"\r", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"a"]
ODD += [b"\xff\xfea\0", b"\xe2\x80\xa8", b"\x1b[2J", b"<|end|>", b"<|endoftext|>\n", b"\n\n\n"]
ODD += [b"word " * 3000, b"\n\n" * 3000, "🦊東京é\u0301\u202e".encode(), b"\xf4\x90\x80\x80"]
GOOD = b"Once upon a time there was a fox.\n\nShe had a red kite.\n\nThe end.\n\n" * 4
ANSWERED = [{"instruction": f"Say {n}.", "output": "a b c d e"} for n in range(8)]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 10**30, 1e400, float("nan"), 2**63]),
    st.sampled_from(["", " ", "a", "\0", "\ud800", "user", "assistant", "system", "é" * 200]),
    st.text(max_size=9),
)
KEYS = ["text", "instruction", "input", "output", "prompt", "completion", "messages", "role"]
KEYS += ["tool_calls", "tools", "reasoning_content", "weight", "train", "documents"]
KEYS += ["content", "from", "value", "conversations", "system", "", "TEXT", "\0"]
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)
turn = st.fixed_dictionaries({}, optional={"role": scalars, "content": anything})
records = st.one_of(
    anything,
    st.sampled_from(ANSWERED),
    st.dictionaries(st.sampled_from(KEYS), scalars, max_size=4),
    st.fixed_dictionaries({"messages": st.lists(turn | scalars, max_size=4)}),
)

RUNS = {
    "text": ["--set", "data={use='text', path='PATH', validation_share=0.2, block=16}"],
    "sft": [
        "--set",
        "data={use='sft', path='PATH', validation_share=0.2, block=16, template='plain'}",
    ],
}


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        a_world(folder)
        yield


def run(use, path, *more):
    changes = [change.replace("PATH", path) for change in RUNS[use]]
    return kdcore("run", "plain.toml", "--out", "out", *changes, *more)


def ends_well(use, path, bad, good):
    """A run of bad data is told, and the same command goes on once the data is mended."""
    shutil.rmtree("out", ignore_errors=True)
    Path(path).write_bytes(bad)
    first = ended_cleanly(run(use, path), (0, 1, 2))
    if first.code:
        Path(path).write_bytes(good)
        again = ended_cleanly(run(use, path), (0, 2))
        if again.code:
            assert "--accept data" in again.err
            ended_cleanly(run(use, path, "--accept", "data"), (0,))
    assert list(Path("out").glob("*/final/model.safetensors"))


def jumbled(draw, good):
    """Bytes of a good file with others put in, in place of some, or of all."""
    made = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(made)))
        end = draw(st.sampled_from([start, start, start + 1, start + 30, len(made)]))
        made[start:end] = draw(st.sampled_from(ODD) | st.binary(max_size=5))
    return bytes(made) if draw(st.booleans()) else draw(st.sampled_from(ODD))


@cases(45)
@given(st.data())
def test_texts(data):
    ends_well("text", "some.txt", jumbled(data.draw, GOOD), GOOD)


def lines(some):
    return "\n".join(json.dumps(each) for each in some).encode()


@cases(30)
@given(st.data(), st.sampled_from(["some.jsonl", "some.json"]))
def test_bytes_that_were_records(data, path):
    good = lines(ANSWERED) if path.endswith("l") else json.dumps(ANSWERED).encode()
    ends_well("sft", path, jumbled(data.draw, good), good)


@cases(60)
@given(st.lists(records, max_size=6), st.sampled_from(["some.jsonl", "some.json"]))
def test_records_for_instructions(some, path):
    as_list = path.endswith(".json")
    bad = json.dumps(some).encode() if as_list else lines(some)
    ends_well("sft", path, bad, json.dumps(ANSWERED).encode() if as_list else lines(ANSWERED))


@cases(30)
@given(st.lists(records, max_size=5))
def test_records_for_texts(some):
    good = lines({"text": each["instruction"]} for each in ANSWERED)
    ends_well("text", "some.jsonl", lines(some), good)


@pytest.mark.parametrize("path", ["some.txt", "some.jsonl"])
def test_a_line_of_ten_megabytes(path):
    texts = ["word " * 2**21, "And a short one.", "The end."]
    bad = "\n\n".join(texts).encode() if path == "some.txt" else lines({"text": t} for t in texts)
    ends_well("text", path, bad, GOOD)


@pytest.mark.parametrize("text", ["a", "a\n\nb", " \n\n ", "\0\n\n\0\n\n\0", "<|end|>\n\n<|end|>"])
def test_texts_of_next_to_nothing(text):
    ends_well("text", "some.txt", text.encode(), GOOD)
