"""Dialogues that student and teacher read by chat templates of their own."""

import json
from functools import partial

import chats
import pytest
import tiny
import torch
from kdcore_aligned.dialogues import OwnTemplate
from kdcore_sft import DIALOGUE, Reteller, Told
from transformers import AutoModelForCausalLM

import kdcore
from kdcore import Completion, Prompt, RunError
from kdcore.data.collate import Collate
from kdcore.objective.alignment import Retokenizer, ids_of_same_bytes
from kdcore.rollout.layout import WRITTEN, written_rows

pytestmark = pytest.mark.slow


def inst_tokenizer():
    """In the manner of Llama 2: the same bytes in other ids, and [INST] around what is asked."""
    made = tiny.byte_tokenizer(["of a wolf in a story, and so on and on"], 330, eos="</s>")
    made.add_special_tokens({"bos_token": "<s>"})
    made.chat_template = chats.LLAMA
    return made


CHATML, INST = chats.chat_tokenizer(), inst_tokenizer()
RECORDS = [
    chats.ask("What is 2 + 2?", "It is 4, of course."),
    chats.ask("Where does the fox live?", "  Once there was a fox: so it goes on, and on. "),
    chats.chat(
        "Hello.", "Hi there!", "And who are you?", "A b c d e f g, 1 2 3: a story of the wolf!"
    ),
    chats.ask("What ends a text?", "In some models it is </s> or <|im_end|>."),
]
LOSSES = [{"use": "ce", "weight": 0.5}, {"use": "kl", "weight": 0.5}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("dialogues")
    tiny.save(made / "student", tokenizer=CHATML, vocabulary=len(CHATML), seed=1)
    tiny.save(made / "teacher", tokenizer=INST, vocabulary=len(INST), seed=2)
    (made / "records.jsonl").write_text("\n".join(json.dumps(each) for each in RECORDS[:3]))
    (made / "spelled.jsonl").write_text(json.dumps(RECORDS[3]))
    return made


def recipe(folder, *, teacher=None, template="auto", path="records.jsonl", **more):
    within = {"use": "hf", "model": str(folder / (teacher or "teacher"))}
    table = {
        "name": "crossed",
        "student": {"model": str(folder / "student")},
        "data": {"use": "sft", "path": str(folder / path)},
        "teacher": {"use": "aligned", "teacher": within, "template": template},
        "loss": LOSSES,
        "train": {"lr": 1e-9, "steps": 1, "batch": 3, "log_every": 1},
    }
    table["data"] |= {"validation": str(folder / path), "block": 160, "rows": "one"}
    return table | more


def turns_of(record):
    if "messages" in record:
        return record["messages"]
    roles = zip(("user", "assistant"), (record["instruction"], record["output"]), strict=True)
    return [{"role": role, "content": content} for role, content in roles]


def answers_in(record, tokenizer, end):
    """Ids, and of each answer its tokens' characters and the place of the token that ends it."""
    text = tokenizer.apply_chat_template(turns_of(record), tokenize=False)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    answers, at = [], 0
    for turn in turns_of(record):
        said = turn["content"].strip()
        at = text.index(said, at) + len(said)
        if turn["role"] == "assistant":
            spans = [(a - at + len(said), b - at + len(said)) for a, b in found["offset_mapping"]]
            stop = next(n for n, (a, _) in enumerate(found["offset_mapping"]) if a >= at)
            while found["input_ids"][stop] != tokenizer.convert_tokens_to_ids(end):
                stop += 1
            answers.append((spans, len(said), stop))
    return torch.tensor(found["input_ids"]), answers


def pairs_by_hand(record):
    """Places of tokens that are the same characters of an answer to both, and ends."""
    ours, of_ours = answers_in(record, CHATML, "<|im_end|>")
    theirs, of_theirs = answers_in(record, INST, "</s>")
    pairs = []
    for (spans, length, stop), (others, _, other_stop) in zip(of_ours, of_theirs, strict=True):
        other_at = {span: n for n, span in enumerate(others)}
        inside = [(n, s) for n, s in enumerate(spans) if 0 <= s[0] < s[1] <= length]
        pairs += [(n, other_at[span]) for n, span in inside if span in other_at]
        pairs.append((stop, other_stop))
    return ours, theirs, pairs


def logs_at(folder, ids, places):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(ids[None]).logits[0, [n - 1 for n in places]].float().log_softmax(-1)


def test_the_loss_is_that_of_both_dialogues_rendered_by_hand(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = dict(ids_of_same_bytes(Retokenizer(CHATML, INST), len(CHATML), len(INST)))
    end, other_end = CHATML.convert_tokens_to_ids("<|im_end|>"), INST.eos_token_id
    shared = {n: m for n, m in shared.items() if m != other_end} | {end: other_end}
    mine, others = torch.tensor([*shared]), torch.tensor([*shared.values()])
    values = []
    for record in RECORDS[:3]:
        ours, theirs, pairs = pairs_by_hand(record)
        q = logs_at(folder / "student", ours, [n for n, _ in pairs])
        p = logs_at(folder / "teacher", theirs, [m for _, m in pairs])
        sides = []
        for logs, ids in ((p, others), (q, mine)):
            rest = logs.index_fill(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
            sides.append(torch.cat([logs[:, ids], rest], 1))
        same = [shared.get(int(ours[n])) == int(theirs[m]) for n, m in pairs]
        values.append((sides[0].exp() * (sides[0] - sides[1])).sum(-1)[torch.tensor(same)])
    expected = torch.cat(values)
    assert len(expected) > 20, len(expected)
    (line,) = [x for x in kdcore.run(recipe(folder)).metrics if x["loss"] is not None]
    assert line["loss/kl"] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_the_same_tokenizer_and_template_give_the_plain_teacher(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = {"use": "hf", "model": str(folder / "student")}
    crossed = kdcore.run(
        recipe(folder, teacher="student", student={"model": str(folder / "student")})
    )
    table = recipe(folder, name="plain") | {"teacher": plain}
    same = kdcore.run(table)
    one, other = (
        next(line for line in each.metrics if line["loss"] is not None) for each in (crossed, same)
    )
    assert one["loss/kl"] == pytest.approx(other["loss/kl"], abs=1e-6)
    assert one["teacher/aligned"] == 1


REASONING = """\
{%- for message in messages -%}
{%- set thought = message.reasoning_content or '' -%}
{%- set before = '<think>' + thought + '</think>\\n' if message.role == 'assistant' else '' -%}
{{ '<|im_start|>' + message.role + '\\n' + before + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def share_known(folder, record, student, teacher):
    """teacher/aligned of a dialogue, with templates of the same tokenizer."""
    for name, template, seed in (("ours", student, 1), ("theirs", teacher, 2)):
        tokenizer = chats.chat_tokenizer(template)
        tiny.save(folder / name, tokenizer=tokenizer, vocabulary=len(tokenizer), seed=seed)
    (folder / "one.jsonl").write_text(json.dumps(record))
    ours = {"model": str(folder / "ours")}
    made = recipe(folder, teacher="theirs", path="one.jsonl", student=ours)
    (line,) = [x for x in kdcore.run(made, fresh=True).metrics if x["loss"] is not None]
    return line["teacher/aligned"]


def test_a_thought_that_a_template_writes_leaves_the_answer_known(tmp_path, monkeypatch):
    """As Qwen3's, which writes an empty one before the last answer."""
    monkeypatch.chdir(tmp_path)
    record = chats.chat("Hello.", "Hi there!", "And you?", "t, or think of a story of the wolf!")
    assert share_known(tmp_path, record, chats.QWEN, chats.THINKING) == 1
    added = len(CHATML.encode("<think></think>\n", add_special_tokens=False))
    learned = len(CHATML.encode("Hi there!t, or think of a story of the wolf!")) + 2
    found = share_known(tmp_path, record, chats.THINKING, chats.QWEN)
    assert found == pytest.approx(learned / (learned + added))


def test_an_answer_whose_thought_one_side_leaves_out_is_not_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = {"role": "assistant", "content": "It is 4.", "reasoning_content": "2 + 2 is 4"}
    record = {"messages": [{"role": "user", "content": "What is 2 + 2?"}, answer]}
    tokens = len(CHATML.encode("<think>2 + 2 is 4</think>\nIt is 4.")) + 1
    found = share_known(tmp_path, record, REASONING, chats.QWEN)
    assert found == pytest.approx(1 / tokens)  # its end


@pytest.mark.parametrize(
    ("template", "said"),
    [(None, "no chat template; set template = .* in .teacher."), ("{% for m in", "cannot be read")],
)
def test_a_teachers_template_that_cannot_be_used_is_said_to_be_the_teachers(
    folder, tmp_path, monkeypatch, template, said
):
    monkeypatch.chdir(tmp_path)
    tokenizer = chats.chat_tokenizer(template)
    tiny.save(folder / "odd", tokenizer=tokenizer, vocabulary=len(tokenizer))
    with pytest.raises(RunError, match=f"a teacher's chat template: .*{said}"):
        kdcore.run(recipe(folder, teacher="odd"))


@pytest.mark.parametrize("template", ["auto", "none"])
def test_texts_that_spell_special_tokens_stay_text(folder, tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    table = recipe(folder, path="spelled.jsonl", template=template)
    table["train"] = table["train"] | {"batch": 1}
    (line,) = [x for x in kdcore.run(table).metrics if x["loss"] is not None]
    assert 0.3 < line["teacher/aligned"] <= 1


@pytest.mark.parametrize("ended", [True, False])
def test_what_the_student_wrote_is_read_by_the_teachers_template(folder, ended):
    """The answer to the second question, in place of the one that the data has."""
    data = chats.Sft(path=str(folder / "records.jsonl"), rows="one", block=160)
    data.asked_columns = frozenset({DIALOGUE})
    row = list(data.make_rows("train", CHATML, seed=0, epoch=0))[2]
    columns = row["columns"][0]
    answer = Told.of(columns[DIALOGUE]).answers[1]
    ids = [*CHATML("so it was </s>, a fox", split_special_tokens=True)["input_ids"]]
    ids += [CHATML.eos_token_id] * ended
    prompt = Prompt(tuple(row["input_ids"][: answer.first].tolist()), 0, 0, columns)
    written = Completion(tuple(ids), finished=ended, prompt=prompt)
    batch = Collate(WRITTEN, len(CHATML), tiny.CPU)(written_rows([[written]], 160, "one"))
    retokenizer = Retokenizer(CHATML, INST)
    own = OwnTemplate(Reteller(INST), retokenizer)
    made = retokenizer(batch, rewrite=partial(own.piece, batch))
    theirs = made.batch.input_ids[0].tolist()
    turns = [*turns_of(RECORDS[2])[:3], {"role": "assistant", "content": "so it was X, a fox"}]
    text = INST.apply_chat_template(turns, tokenize=False).replace("X", "</s>")
    assert INST.decode(theirs) == text
    assert theirs.count(INST.eos_token_id) == 2
    spans = made.spans
    assert spans.first[0] >= answer.first and spans.end[-1] == answer.first + len(ids)
    assert (theirs[spans.other_first[-1]] == INST.eos_token_id) == ended
    ours = batch.input_ids[0].tolist()[spans.first[0] : spans.end[-1 - ended]]
    others = theirs[spans.other_first[0] : spans.other_end[-1 - ended]]
    said, read = (
        b"".join(table[each] for each in some)
        for table, some in ((retokenizer.our_bytes, ours), (retokenizer.other_bytes, others))
    )
    assert said == read and said.endswith(b"was </s>, a fox")


def test_rollouts_train_with_it(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = recipe(folder, rollout={"use": "student", "max_new_tokens": 8, "share": 0.5})
    table["loss"] = [{"use": "alm"}, {"use": "gold"}]
    (line,) = [x for x in kdcore.run(table).metrics if x["loss"] is not None]
    assert line["teacher/aligned"] > 0 and line["loss/alm"] > 0 and line["loss/gold"] > 0


def test_a_template_of_the_recipe_takes_the_place_of_the_teachers(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = []
    for template in ("auto", chats.NAKED):
        table = recipe(folder, template=template, name=f"t{len(found)}")
        found.append(next(x for x in kdcore.run(table).metrics if x["loss"] is not None))
    assert found[0]["loss/kl"] != found[1]["loss/kl"]


def test_documents_have_the_dialogue_only_where_it_is_asked_for(folder):
    tokenizer = CHATML
    plain = chats.Sft(path=str(folder / "records.jsonl"), rows="one", block=160)
    asked = chats.Sft(path=str(folder / "records.jsonl"), rows="one", block=160)
    asked.asked_columns = frozenset({DIALOGUE})
    (row, *_), (other, *_) = (
        list(each.make_rows("train", tokenizer, seed=0, epoch=0)) for each in (plain, asked)
    )
    assert not row.get("columns") and row["input_ids"].tolist() == other["input_ids"].tolist()
    known = Told.of(other["columns"][0][DIALOGUE])
    (answer,) = known.answers
    assert answer.text == "It is 4, of course." and answer.turn == 1
    assert tokenizer.decode(other["input_ids"][answer.first : answer.end]) == answer.text
    assert tokenizer.decode([other["input_ids"][answer.stop]]) == "<|im_end|>"
