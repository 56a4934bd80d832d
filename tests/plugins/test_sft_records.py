"""What reaches the chat template: the whole record, and every kind of turn."""

import json
import logging

import chats
import datasets
import pytest
from chat_templates import CHATML, HEADED, PARTED, STRICT, THOUGHTFUL
from chats import NAKED, data_of, learned, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdcore_sft import Sft
from pydantic import ValidationError

from kdcore import RunError

TOKENIZER = chats.chat_tokenizer(THOUGHTFUL)
TOKENIZER.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
MARKED = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
WRITTEN = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds."}}]


def user(content):
    return {"role": "user", "content": content}


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


def tool(content):
    return {"role": "tool", "content": content, "name": "add"}


def turns(*messages, **more):
    return {"messages": list(messages), **more}


A, B = user("a"), answer("b")


def one(folder, record, tokenizer=TOKENIZER, **options):
    (row,) = rows_of(folder, [record], tokenizer, **options)
    return row


def text(row, tokenizer=TOKENIZER):
    return tokenizer.decode(row["input_ids"])


def headed_tokenizer():
    tokenizer = chats.chat_tokenizer(HEADED)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKED, "bos_token": "<|begin|>"})
    return tokenizer


def check_whole(row, record, tokenizer=TOKENIZER, **options):
    """The ids are those of what the library makes of the record."""
    whole = tokenizer.apply_chat_template(
        record["messages"], tools=record.get("tools"), tokenize=False, **options
    )
    assert row["input_ids"].tolist() == tokenizer.encode(whole, add_special_tokens=False)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_learned_before_the_answer(tmp_path, name):
    record = turns(user("2+2?"), answer("four", **{name: "easy, 4"}))
    row = one(tmp_path, record)
    assert learned(row, TOKENIZER) == ["<think>\neasy, 4\n</think>\n\nfour<|im_end|>"]
    check_whole(row, record)


def test_thoughts_within_a_content_are_the_templates_to_place(tmp_path):
    record = turns(user("2+2?"), answer("<think>\neasy, 4\n</think>\n\nfour"))
    row = one(tmp_path, record)
    assert learned(row, TOKENIZER) == ["<think>\neasy, 4\n</think>\n\nfour<|im_end|>"]
    check_whole(row, record)


def test_thoughts_are_learned_where_nothing_asks_for_an_answer(tmp_path):
    template = THOUGHTFUL[: THOUGHTFUL.index("{%- if add_generation_prompt")]
    record = turns(user("2+2?"), answer("four", reasoning_content="easy, 4"))
    (found,) = learned(one(tmp_path, record, template=template), TOKENIZER)
    assert found.endswith("easy, 4\n</think>\n\nfour<|im_end|>")
    assert "assistant" not in found


def test_thoughts_that_the_template_leaves_out_are_counted(tmp_path, caplog):
    record = turns(
        user("1?"), answer("one", reasoning="easy"), user("2?"), answer("two", reasoning="hard")
    )
    row = one(tmp_path, record)
    assert learned(row, TOKENIZER) == ["one<|im_end|>", "<think>\nhard\n</think>\n\ntwo<|im_end|>"]
    assert "leaves out the thoughts before 1 of 2 answers" in caplog.text
    caplog.clear()
    one(tmp_path, record, train_on="last")
    assert "thoughts" not in caplog.text


def test_variables_of_the_template_are_set_by_the_recipe_or_the_record(tmp_path):
    record = turns(user("2+2?"), answer("four"))
    thinking = "<think>\n\n</think>\n\n"
    row = one(tmp_path, record)
    assert learned(row, TOKENIZER) == [f"{thinking}four<|im_end|>"]
    off = {"enable_thinking": False}
    for own, options in [
        ({}, {"chat_template_kwargs": off}),
        (off, {}),
        ({"chat_template_kwargs": off}, {"chat_template_kwargs": {"enable_thinking": True}}),
    ]:
        row = one(tmp_path, {**record, **own}, **options)
        assert learned(row, TOKENIZER) == ["four<|im_end|>"]
        assert f"{thinking}four" in text(row)


def test_variables_that_no_template_reads_are_refused(tmp_path):
    record = turns(user("a"), answer("b"))
    with pytest.raises(
        RunError, match=r"does not read enable_thinkin, .*; it reads .*enable_thinking"
    ):
        one(tmp_path, record, chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(ValidationError, match="messages is what kdcore gives"):
        Sft(path="a.json", chat_template_kwargs={"messages": "x"})


@pytest.mark.parametrize("content", [None, "", "I will add."])
def test_calls_of_tools_are_learned(tmp_path, content):
    record = turns(
        user("2+3?"), answer(content, tool_calls=[CALL]), tool("5"), answer("five"), tools=TOOLS
    )
    row = one(tmp_path, record)
    call, said = learned(row, TOKENIZER)
    assert call == f"{content or ''}\n{WRITTEN}<|im_end|>"
    assert said == "<think>\n\n</think>\n\nfive<|im_end|>"
    assert text(row).startswith('<|im_start|>system\nTools:\n{"type": "function"')
    assert "<tool_response>\n5\n</tool_response>" in text(row)
    check_whole(row, record)


def test_a_call_may_end_a_dialogue(tmp_path):
    row = one(tmp_path, turns(user("2+3?"), answer("", tool_calls=[CALL]), tools=TOOLS))
    assert learned(row, TOKENIZER) == [f"<think>\n\n</think>\n\n\n{WRITTEN}<|im_end|>"]


def test_calls_may_end_with_another_token_than_words(tmp_path):
    tokenizer = headed_tokenizer()
    record = turns(user("2+3?"), answer("", tool_calls=[CALL]), tool("5"), answer(" five "))
    day = {"date_string": "1 May 2026"}
    row = one(tmp_path, record, tokenizer, chat_template_kwargs=day)
    assert learned(row, tokenizer) == [
        '{"name": "add", "parameters": {"a": 2, "b": 3}}<|eom_id|>',
        "five<|eot_id|>",
    ]
    check_whole(row, record, tokenizer, **day)


def test_calls_that_a_dialogue_cannot_do_without_are_learned(tmp_path):
    tokenizer = chats.llama_tokenizer(STRICT)
    call = {"id": "abcdefghi", **CALL}
    record = turns(
        user("2+3?"),
        answer("", tool_calls=[call]),
        tool("5"),
        answer("five"),
        user("?"),
        answer("!"),
    )
    row = one(tmp_path, record, tokenizer)
    first, *others = (each.strip() for each in learned(row, tokenizer))
    assert first == f"[CALL] {json.dumps([call])}</s>"
    assert others == ["five</s>", "!</s>"]
    check_whole(row, record, tokenizer)


def test_arguments_may_be_written_as_json(tmp_path):
    written = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
    row = one(tmp_path, turns(user("2+3?"), answer("", tool_calls=[written])))
    assert WRITTEN in text(row)


def test_arguments_are_written_as_json_where_a_template_wants_it(tmp_path):
    template = CHATML.replace(
        "m['content']",
        "(m.tool_calls[0].function.arguments + 'é' if m.tool_calls else m['content'])",
    )
    record = turns(user("2+3?"), answer("", tool_calls=[CALL]))
    row = one(tmp_path, record, template=template)
    assert learned(row, TOKENIZER) == ['{"a": 2, "b": 3}é<|im_end|>']


@pytest.mark.parametrize(
    ("content", "end"),
    [
        ("(m.content if m.content is not none else 'calls')", "calls"),
        ("(m.content | string) + ('.' if m.tool_calls else '')", "."),
    ],
)
def test_contents_of_nothing_reach_a_template_unless_it_would_write_none(tmp_path, content, end):
    record = turns(user("2+3?"), answer(None, tool_calls=[CALL]))
    row = one(tmp_path, record, template=CHATML.replace("m['content']", content))
    assert learned(row, TOKENIZER) == [f"{end}<|im_end|>"]


@pytest.mark.parametrize("tools", [json.dumps(TOOLS), [json.dumps(TOOLS[0])]])
def test_tools_may_be_written_as_json(tmp_path, tools):
    row = one(tmp_path, turns(user("a"), answer("b"), tools=tools))
    assert f"Tools:\n{json.dumps(TOOLS[0])}<|im_end|>" in text(row)


def test_tables_pad_records_and_templates_do_not_see_it(tmp_path):
    """Parquet has a field for whatever any record has: tools of one are not those of another."""
    other = {"type": "function", "function": {"name": "neg", "arguments": {"x": 1}}}
    records = [
        turns(user("2+3?"), answer(None, tool_calls=[CALL]), tools=TOOLS),
        turns(user("-1?"), answer("so", tool_calls=[other], reasoning_content="hm"), tools=None),
        turns(user("a"), answer("b")),
    ]
    datasets.Dataset.from_list(records).to_parquet(tmp_path / "a.parquet")
    data = Sft(path=str(tmp_path / "a.parquet"), rows="one")
    rows = list(data.make_rows("train", TOKENIZER, seed=0, epoch=0))
    assert [text(row) for row in rows] == [
        text(one(tmp_path, record)) for record in [records[0], records[1], records[2]]
    ]


def test_contents_may_be_parts_and_templates_may_want_them(tmp_path):
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "+2?", "image": None}]
    as_parts = turns(user(parts), answer([{"type": "text", "text": "four"}]))
    as_text = turns(user("2+2?"), answer("four"))
    for template in (CHATML, PARTED, THOUGHTFUL):
        rows = [one(tmp_path, each, template=template) for each in (as_parts, as_text)]
        assert text(rows[0]) == text(rows[1])
        assert "user\n2+2?<|im_end|>" in text(rows[0])
        assert learned(rows[0], TOKENIZER) == learned(rows[1], TOKENIZER)
        assert learned(rows[0], TOKENIZER)[0].endswith("four<|im_end|>")


def test_sharegpt(tmp_path):
    said = [("system", "s"), ("human", "a"), ("gpt", "b"), ("observation", "c"), ("gpt", "d")]
    record = {"conversations": [{"from": role, "value": value} for role, value in said]}
    roles = {"human": "user", "gpt": "assistant", "observation": "tool"}
    same = turns(*({"role": roles.get(role, role), "content": value} for role, value in said))
    assert text(one(tmp_path, record)) == text(one(tmp_path, same))


def test_a_developer_is_the_system_where_a_template_knows_none(tmp_path):
    record = turns({"role": "developer", "content": "Be short."}, user("a"), answer("b"))
    assert text(one(tmp_path, record, template=CHATML)).startswith(
        "<|im_start|>developer\nBe short."
    )
    assert text(one(tmp_path, record, template=chats.QWEN)).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>developer"
    )
    assert text(one(tmp_path, record, template="plain")).startswith("Be short.\n\nUser:\na")
    row = one(tmp_path, record, system="Be long.")
    assert "Be long." not in text(row)


def test_a_tool_is_not_taken_for_the_assistant(tmp_path):
    record = turns(user("a"), answer("b"), tool("5"), answer("c"))
    with pytest.raises(
        RunError, match=r"record 1: the chat template refuses it: .*turns of a tool"
    ):
        one(tmp_path, record, template="plain")
    careless = chats.LLAMA.replace("{%- if (message['role'] == 'user') != ", "{%- if false and ")
    careless = careless.replace("(loop.index0 % 2 == 0)", "true")
    with pytest.raises(
        RunError, match="record 1: the chat template writes a tool's turn as the ass"
    ):
        one(tmp_path, record, chats.llama_tokenizer(careless))


def test_turns_of_a_prompt_are_read_and_those_of_a_completion_learned(tmp_path):
    record = {
        "prompt": [user("1?"), answer("one"), user("2?")],
        "completion": [answer("two"), user("3?"), answer("three")],
    }
    row = one(tmp_path, record, template=CHATML)
    assert learned(row, TOKENIZER) == ["two<|im_end|>", "three<|im_end|>"]
    assert "one<|im_end|>" in text(row)


@pytest.mark.parametrize(
    ("off", "on"),
    [
        ({"weight": 0}, {"weight": 1}),
        ({"weight": 0.0}, {"weight": 1.0}),
        ({"train": False}, {"train": True}),
        ({"training": False}, {}),
        ({"train": False, "weight": 0}, {"train": True, "weight": 1}),
    ],
)
def test_turns_say_whether_they_are_learned(tmp_path, off, on):
    record = turns(user("1?"), answer("one", **off), user("2?"), answer("two", **on))
    row = one(tmp_path, record, template=CHATML)
    assert learned(row, TOKENIZER) == ["two<|im_end|>"]
    assert "one<|im_end|>" in text(row)
    record = turns(user("1?"), answer("one", **on), user("2?"), answer("two", **off))
    for train_on in ("all", "last"):
        row = one(tmp_path, record, template=CHATML, train_on=train_on)
        assert learned(row, TOKENIZER) == ["one<|im_end|>"]


def test_dialogues_of_which_nothing_is_learned_are_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdcore")
    kept = turns(user("a"), answer("b"))
    rows = rows_of(tmp_path, [turns(user("a"), answer("c", weight=0)), kept], TOKENIZER)
    assert len(rows) == 1
    assert "1 without an answer were left out" in caplog.messages[-1]


def test_a_record_may_have_a_system_text(tmp_path):
    record = {"system": "Be brief.", **chats.ask("Hi", "Hello.")}
    assert text(one(tmp_path, record, system="Be long.", template=CHATML)).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>"
    )


def test_what_no_template_reads_is_counted_and_named(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdcore")
    records = [
        turns(user("a"), answer("b", name="x"), id=1, tools=TOOLS),
        turns(user("a"), answer("b"), id=2),
        turns({**user("a"), "date": "May"}, answer("b")),
    ]
    rows_of(tmp_path, records, TOKENIZER, template=CHATML)
    (line,) = [each for each in caplog.records if "does not read" in each.getMessage()]
    assert line.levelname == "WARNING"  # for the tools
    said = line.getMessage().removeprefix("train: the chat template does not read ")
    assert sorted(said.split(", ")) == [
        "date (1 record)",
        "id (2 records)",
        "name (1 record)",
        "tools (1 record)",
    ]
    caplog.clear()
    rows_of(tmp_path, records, TOKENIZER)
    (line,) = [each for each in caplog.records if "does not read" in each.getMessage()]
    assert line.levelname == "INFO" and "tools" not in line.getMessage()


def test_an_answer_of_which_nothing_is_written_is_refused(tmp_path):
    record = turns(user("2+3?"), answer("", tool_calls=[CALL]))
    with pytest.raises(RunError, match=r"record 1: .* omits message 2, which has content"):
        one(tmp_path, record, template=CHATML)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cut": 1, "other": 2}'])
def test_lost_counts_are_not_reported_as_none(tmp_path, caplog, monkeypatch, content):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = data_of(tmp_path, [turns(A, B), turns(A, answer(""))])
    data.make_rows("train", TOKENIZER, seed=0, epoch=0)
    (counts,) = (tmp_path / "cache").glob("kdcore-dialogues-*.json")
    counts.write_text(content)
    caplog.clear()
    caplog.set_level(logging.INFO, "kdcore")
    data.make_rows("train", TOKENIZER, seed=0, epoch=0)
    assert caplog.messages[-1] == "train: 2 dialogues, tokenised before"


def test_a_tokenizer_may_have_several_templates(tmp_path):
    named = {"default": CHATML, "rag": NAKED}
    tokenizer = chats.chat_tokenizer(named)
    assert learned(one(tmp_path, turns(A, B), tokenizer), tokenizer) == ["b<|im_end|>"]
    tokenizer.chat_template["tool_use"] = THOUGHTFUL
    rows = rows_of(tmp_path, [turns(A, B), turns(A, B, tools=TOOLS)], tokenizer)
    assert [learned(each, tokenizer) for each in rows] == [
        ["b<|im_end|>"],
        ["<think>\n\n</think>\n\nb<|im_end|>"],
    ]
    check_whole(rows[1], turns(A, B, tools=TOOLS), tokenizer)
    tokenizer.chat_template = {"rag": NAKED}
    with pytest.raises(RunError, match="has the chat templates rag and no default; set template"):
        one(tmp_path, turns(A, B), tokenizer)


def renamed(**fields):
    return {"template": CHATML, "fields": fields}


def test_names_of_a_file_are_mapped(tmp_path):
    want = text(one(tmp_path, chats.ask("Hi\nyou", "Hello."), template=CHATML))
    record = {"question": "Hi", "more": {"context": "you"}, "answers": {"text": ["Hello."]}}
    names = {"instruction": "question", "input": "more.context", "output": "answers.text.0"}
    assert text(one(tmp_path, record, **renamed(**names))) == want
    record = {"a.b": "Hi\nyou", "messages": "of another kind", "c": "Hello."}
    assert text(one(tmp_path, record, **renamed(prompt="a.b", completion="c"))) == want
    record = {"talk": [{"by": "user", "says": "Hi\nyou"}, {"by": "assistant", "says": "Hello."}]}
    names = {"messages": "talk", "role": "by", "content": "says"}
    assert text(one(tmp_path, record, **renamed(**names))) == want


def test_names_that_no_record_has_are_refused_with_those_that_there_are(tmp_path):
    record = {"question": "a", "meta": {"answer": "b", "id": 1}}
    with pytest.raises(
        RunError,
        match=r"record 1 has no 'answr', .* for output; it has question, meta.answer, meta.id",
    ):
        one(tmp_path, record, **renamed(instruction="question", output="answr"))
    record = {"question": "a", "answer": "b"}
    names = {"instruction": "question", "output": "answer"}
    with pytest.raises(
        RunError,
        match=r"no record of the 'train' split has 'contxt', .* for input; there are question",
    ):
        one(tmp_path, record, **renamed(**names, input="contxt"))
    records = [record, {**record, "context": "c"}]
    assert len(rows_of(tmp_path, records, TOKENIZER, **renamed(**names, input="context"))) == 2
    with pytest.raises(ValidationError, match="instructions: names on the left are those of sft"):
        Sft(path="a.json", fields={"instructions": "question"})


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (turns(A, answer("b", weight=0.5)), "message 2 has weight = 0.5; possible are 0 and 1"),
        (turns(A, answer("b", weight=True)), "message 2 has weight = true; possible are 0 and 1"),
        (turns(A, answer("b", weight="1")), "message 2 has weight = '1'; possible are 0 and 1"),
        (turns(A, answer("b", train=1)), "message 2 has train = 1; possible are true and false"),
        (turns(A, answer("b", training="no")), "has training = 'no'; possible are true and"),
        (turns(A, answer("b", train=True, weight=0)), "weight and train, which say different"),
        (turns({**A, "train": True}, B), "message 1 has train = true and the role user; the ass"),
        (turns(A, answer("b", tool_calls="x")), "message 2 has tool_calls of type str"),
        (turns(A, answer("b", reasoning=["x"])), "message 2 has a reasoning of type list"),
        (turns(A, answer(None)), "message 2 has no content"),
        (turns(user([{"type": "image"}]), B), "has a part 1 of type 'image', and only text"),
        (turns(user([{"type": "text"}]), B), "message 1 has a part 1 without text"),
        (turns(user([5]), B), "message 1 has a part 1 of type int, no text"),
        (turns(A, B, tools="add"), "record 1 has tools that are text but not JSON: Expecting"),
        (turns(A, B, tools={"a": 1}), "record 1 has tools of type dict, expected a list"),
        (turns(A, B, tools=[5]), "record 1 has int among its tools, expected tables"),
        (turns(A, B, system=5), "record 1 has system of type int, expected text"),
        (turns(A, B, chat_template_kwargs=5), "chat_template_kwargs of type int, no table"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "message 1 has the role 'bot'; poss"),
        ({"conversations": [{"value": "x"}]}, "message 1 has no role"),
        ({"prompt": [A], "completion": []}, "record 1 has no completion"),
        ({"prompt": "a", "completion": [B]}, "record 1 has prompt of type str, expected"),
    ],
)
def test_errors_in_turns_are_reported_with_file_and_record(tmp_path, record, said):
    with pytest.raises(RunError) as refused:
        one(tmp_path, record)
    assert str(tmp_path / "records.json") in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_date_is_pinned_or_refused(tmp_path):
    tokenizer = headed_tokenizer()
    record = turns(A, B)
    with pytest.raises(
        RunError, match=r'set chat_template_kwargs = \{date_string = "\d\d \w+ \d{4}"\} in \[data\]'
    ):
        one(tmp_path, record, tokenizer)
    day = {"date_string": "26 Jul 2024"}
    assert "Today: 26 Jul 2024" in text(one(tmp_path, record, tokenizer, chat_template_kwargs=day))
    template = "{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML
    with pytest.raises(
        RunError, match=r'chat_template_kwargs = \{strftime_now = "\d{4}-\d\d-\d\d"\} in \[data\]'
    ):
        one(tmp_path, record, template=template)
    options = {"template": template, "chat_template_kwargs": {"strftime_now": "2026-01-05"}}
    assert text(one(tmp_path, record, **options)).startswith("05 Jan 2026\n<|im_start|>")
    with pytest.raises(ValidationError, match='as in strftime_now = "2026-07-26"'):
        Sft(path="a.json", chat_template_kwargs={"strftime_now": "today"})


def test_the_day_is_of_the_rows(tmp_path):
    template = "{{ strftime_now('%d') + '\n' }}" + CHATML
    for day in ("2026-01-05", "2026-01-06"):
        options = {"template": template, "chat_template_kwargs": {"strftime_now": day}}
        data = data_of(tmp_path, [turns(A, B)], **options)
        row = data.make_rows("train", TOKENIZER, seed=0, epoch=0)[0]
        assert text(row).startswith(day[-2:])


scalars = st.none() | st.booleans() | st.sampled_from([0, 1, 0.5, "", " ", "a", "<|im_end|>", "{"])
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "text", "function", "name", "arguments", "id"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)
keys = [
    "reasoning_content",
    "thinking",
    "tool_calls",
    "weight",
    "train",
    "training",
    "name",
    "from",
]
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "gpt"])},
    optional={
        "content": st.sampled_from(["a", "b <|im_end|>", "<think>\nx\n</think>\n\ny"]) | anything,
        **dict.fromkeys(keys, anything),
        "tool_calls": st.lists(st.just(CALL) | anything, max_size=2),
    },
)
record = st.fixed_dictionaries(
    {"messages": st.lists(message, max_size=5).map(lambda some: [user("Hi"), *some, answer("b")])},
    optional={
        "tools": anything | st.just(TOOLS),
        **dict.fromkeys(["documents", "system", "chat_template_kwargs", "x"], anything),
    },
)


@pytest.mark.slow
@pytest.mark.parametrize("template", [CHATML, THOUGHTFUL, HEADED, STRICT, PARTED, "plain"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_a_record_has(tmp_path, template, data):
    """It becomes a row that learns something after its prompt, or a sentence names the record."""
    options = {"chat_template_kwargs": {"date_string": "1"}} if template == HEADED else {}
    given = data.draw(record)
    block = data.draw(st.sampled_from([512, 512, 40]))
    try:
        row = one(tmp_path, given, template=template, block=block, **options)
    except RunError as error:
        assert "record 1" in str(error) and "\n" not in str(error)
    else:
        assert row["labels"][0] == -100 and (row["labels"] != -100).any()
        assert len(row["labels"]) <= block
