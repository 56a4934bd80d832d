"""Which tokens of a dialogue are learned: each answer and the one token that ends it."""

import chats
import pytest
import tiny
from chats import NAKED, QWEN, STRIPPING, THINKING, ask, chat, learned, rows_of, stretches
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from kdcore import RunError

TOKENIZER = chats.chat_tokenizer()


def texts(row, tokenizer=TOKENIZER):
    return tokenizer.decode(row["input_ids"])


def test_the_prompt_is_masked_and_the_answer_learned_with_its_end(tmp_path):
    (row,) = rows_of(tmp_path, [ask("Who is Ruby?", "A small fox.")], TOKENIZER)
    assert texts(row) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWho is Ruby?<|im_end|>\n"
        "<|im_start|>assistant\nA small fox.<|im_end|>\n"
    )
    assert learned(row, TOKENIZER) == ["A small fox.<|im_end|>"]
    assert (row["input_ids"] == TOKENIZER.convert_tokens_to_ids("<|im_end|>")).sum() == 3
    assert row["labels"][-1] == -100  # the newline after the end


def test_instruction_and_input_are_joined_by_one_newline(tmp_path):
    records = [ask("Translate.", "Fox", input="狐狸"), ask("Say hi.", "Hi", input="")]
    both, one = rows_of(tmp_path, records, TOKENIZER)
    assert "user\nTranslate.\n狐狸<|im_end|>" in texts(both)
    assert "user\nSay hi.<|im_end|>" in texts(one)


def test_every_answer_of_a_dialogue_is_learned_or_the_last_one(tmp_path):
    record = chat("Hi", "Hello.", "Who are you?", "An owl.", "Thanks!", system="Be an owl.")
    (row,) = rows_of(tmp_path, [record], TOKENIZER)
    assert learned(row, TOKENIZER) == ["Hello.<|im_end|>", "An owl.<|im_end|>"]
    assert "helpful" not in texts(row) and "Thanks!" not in texts(row)
    (row,) = rows_of(tmp_path, [record], TOKENIZER, train_on="last")
    assert learned(row, TOKENIZER) == ["An owl.<|im_end|>"]


def test_a_system_prompt_is_put_before_dialogues_without_one(tmp_path):
    records = [ask("Hi", "Hello."), chat("Hi", "Hello.", system="Be an owl.")]
    without, with_own = rows_of(tmp_path, records, TOKENIZER, system="Be a fox.")
    assert texts(without).startswith("<|im_start|>system\nBe a fox.<|im_end|>")
    assert texts(with_own).startswith("<|im_start|>system\nBe an owl.<|im_end|>")


@pytest.mark.parametrize("template", [QWEN, STRIPPING, THINKING])
def test_an_answer_may_stand_in_the_prompt_too(tmp_path, template):
    records = [
        ask("Yes", "Yes"),
        ask("assistant\nYes<|im_end|>", "Yes"),
        chat("Yes", "Yes", "Yes", "Yes", system="Yes"),
    ]
    rows = rows_of(tmp_path, records, TOKENIZER, template=template)
    end = "Yes<|im_end|>"
    thought = "<think></think>\n" if template == THINKING else ""
    assert learned(rows[0], TOKENIZER) == [thought + end]
    assert learned(rows[1], TOKENIZER) == [thought + end]
    assert learned(rows[2], TOKENIZER) == [end, thought + end]
    assert (
        stretches(rows[0])[0] == rows[0]["input_ids"].tolist()[-len(stretches(rows[0])[0]) - 1 : -1]
    )


def test_blanks_around_an_answer_are_as_the_template_has_them(tmp_path):
    records = [ask("Hi", " Hello. "), ask("Hi", "\n\nHello.\n")]
    kept = rows_of(tmp_path, records, TOKENIZER)
    assert [learned(row, TOKENIZER)[0].strip("\n") for row in kept] == [
        " Hello. <|im_end|>",
        "Hello.\n<|im_end|>",
    ]
    stripped = rows_of(tmp_path, records, TOKENIZER, template=STRIPPING)
    assert [learned(row, TOKENIZER) for row in stripped] == [["Hello.<|im_end|>"]] * 2


def test_chinese_is_masked_to_the_byte(tmp_path):
    question, *_, answer = chats.CHINESE
    records = [ask(question, answer), ask(answer, answer), ask("狐", "🐻")]
    rows = rows_of(tmp_path, records, TOKENIZER)
    assert [learned(row, TOKENIZER) for row in rows] == [
        [f"{answer}<|im_end|>"],
        [f"{answer}<|im_end|>"],
        ["🐻<|im_end|>"],
    ]
    assert len(stretches(rows[2])[0]) > 2  # the bear is several tokens, and all are learned


def test_llama_templates_have_an_end_in_each_turn_and_no_header(tmp_path):
    tokenizer = chats.llama_tokenizer()
    record = chat("Are you sad?", " Once. ", "Why?", "The end.", system="Be an owl.")
    (row,) = rows_of(tmp_path, [record], tokenizer)
    assert [text.strip() for text in learned(row, tokenizer)] == ["Once. </s>", "The end. </s>"]
    asked = tokenizer.apply_chat_template(record["messages"][:2], tokenize=False)
    prompt = tokenizer.encode(asked, add_special_tokens=False)
    first = int((row["labels"] != -100).argmax())
    assert row["input_ids"].tolist()[:first] == prompt


def test_the_token_of_a_space_before_an_answer_is_learned(tmp_path):
    """Asked with a prompt that ends before it, the model must write it by itself."""
    tokenizer = chats.llama_tokenizer()
    (row,) = rows_of(tmp_path, [ask("Say fox.", "狐狸")], tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(stretches(row)[0])
    assert pieces[0] == "▁" and pieces[-1] == "</s>"
    assert learned(row, tokenizer)[0].strip() == "狐狸 </s>"


def test_a_space_before_an_answer_that_is_not_in_the_text_is_learned(tmp_path):
    """Some tokenizers write a space after each special token that is not in the text."""
    tokenizer = chats.llama_tokenizer(
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    )
    (row,) = rows_of(tmp_path, [ask("Say fox.", "狐狸")], tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(stretches(row)[0])
    assert pieces[0] == "▁" and pieces[-1] == "</s>"
    prompt = tokenizer.encode("Say fox.</s>", add_special_tokens=False)
    assert row["input_ids"].tolist() == [*prompt, *stretches(row)[0]]


def test_a_header_that_ends_with_a_space_is_prompt(tmp_path):
    """Also where a tokenizer says that its tokens begin after their space, as GPT-2's does."""
    tokenizer = chats.merging_tokenizer(NAKED.replace("':'", "': '"))
    trimming = processors.ByteLevel(trim_offsets=True)
    tokenizer.backend_tokenizer.post_processor = trimming
    (row,) = rows_of(tmp_path, [ask("ok", "yes")], tokenizer)
    assert learned(row, tokenizer) == ["yes<|endoftext|>"]
    (row,) = rows_of(tmp_path, [ask("ok", "  yes, sir")], tokenizer)
    assert learned(row, tokenizer) == ["  yes, sir<|endoftext|>"]


def test_the_bos_of_the_next_turn_ends_nothing(tmp_path):
    template = "{% for m in messages %}{{ bos_token + m.role + ': ' + m.content }}{% endfor %}"
    tokenizer = chats.llama_tokenizer(template)
    (row,) = rows_of(tmp_path, [chat("one", "two", "three", "four")], tokenizer)
    assert [text.strip() for text in learned(row, tokenizer)] == ["two", "four</s>"]


@pytest.mark.parametrize("answer", ["yes", "yes\n", "y"])
def test_ids_are_those_of_the_whole_dialogue_where_the_seam_merges(tmp_path, answer):
    tokenizer = chats.merging_tokenizer()
    (row,) = rows_of(tmp_path, [ask("ok", answer)], tokenizer)
    whole = tokenizer.encode(f"user:ok\nassistant:{answer}")
    assert row["input_ids"].tolist() == [*whole, tokenizer.eos_token_id]
    # The first token that holds some of the answer is learned, though it holds the colon too.
    assert learned(row, tokenizer) == [f":{answer}<|endoftext|>"]


def test_eos_is_appended_where_the_template_writes_no_end(tmp_path):
    record = chat("one", "two", "three", "four")
    (row,) = rows_of(tmp_path, [record], TOKENIZER, template=NAKED)
    assert texts(row) == "user:one\nassistant:two\nuser:three\nassistant:four<|im_end|>"
    assert learned(row, TOKENIZER) == ["two", "four<|im_end|>"]
    (row,) = rows_of(tmp_path, [record], TOKENIZER, template=NAKED, eos=False)
    assert learned(row, TOKENIZER) == ["two", "four"]


def test_words_that_end_a_dialogue_are_learned_with_the_answer(tmp_path):
    template = NAKED.replace("'\\n'", "' ### end\\n'")
    (row,) = rows_of(tmp_path, [ask("one", "two")], TOKENIZER, template=template)
    assert learned(row, TOKENIZER) == ["two ### end\n<|im_end|>"]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>"])
def test_what_pads_makes_no_difference(tmp_path, pad):
    tokenizer = chats.chat_tokenizer(pad=pad)
    (row,) = rows_of(tmp_path, [ask("Hi", "Hello.")], tokenizer)
    assert learned(row, tokenizer) == ["Hello.<|im_end|>"]


def test_the_built_in_templates(tmp_path):
    record = chat("one", "two", "three", "four", system="zero")
    (row,) = rows_of(tmp_path, [record], TOKENIZER, template="chatml")
    assert texts(row).startswith("<|im_start|>system\nzero<|im_end|>\n<|im_start|>user\none")
    assert learned(row, TOKENIZER) == ["two<|im_end|>", "four<|im_end|>"]
    tokenizer = tiny.byte_tokenizer()
    (row,) = rows_of(tmp_path, [record], tokenizer, template="plain")
    assert texts(row, tokenizer) == (
        "zero\n\nUser:\none\n\nAssistant:\ntwo<|end|>\n\nUser:\nthree\n\nAssistant:\nfour<|end|>"
    )
    assert learned(row, tokenizer) == ["two<|end|>", "four<|end|>"]


def test_a_template_must_come_from_somewhere(tmp_path):
    tokenizer = tiny.byte_tokenizer()
    with pytest.raises(RunError, match=r'has no chat template; set template = "plain"'):
        rows_of(tmp_path, [ask("Hi", "Hello.")], tokenizer)
    with pytest.raises(RunError, match=r"lacks <\|im_start\|> and <\|im_end\|>, which"):
        rows_of(tmp_path, [ask("Hi", "Hello.")], tokenizer, template="chatml")


def test_what_a_template_refuses_is_reported_with_the_record(tmp_path):
    tokenizer = chats.llama_tokenizer()
    turns = [{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}]
    with pytest.raises(RunError, match=r"record 2: the chat template refuses it: .* alternate"):
        rows_of(tmp_path, [ask("a", "b"), {"messages": turns}], tokenizer)
    with pytest.raises(RunError, match=r"the chat template cannot be read: Expected"):
        rows_of(tmp_path, [ask("a", "b")], TOKENIZER, template="{% for %}")
    with pytest.raises(RunError, match="writes message 2 0 times instead of once"):
        rows_of(tmp_path, [ask("a", "b")], TOKENIZER, template="{{ messages[0].content }}")
    upper = NAKED.replace("m.content", "m.content.upper()")
    with pytest.raises(RunError, match="writes message 2 0 times"):
        rows_of(tmp_path, [ask("a", "b")], TOKENIZER, template=upper)


words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Co"], exclude_characters="<\r"),
    max_size=20,
)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(words, words.filter(str.strip)), min_size=1, max_size=3))
def test_the_learned_ids_are_the_answer_and_its_end(tmp_path, exchanges):
    """Whatever is said: decoded, the learned ids are what was answered, and one end."""
    contents = [text for pair in exchanges for text in pair]
    (row,) = rows_of(tmp_path, [chat(*contents)], TOKENIZER)
    found = learned(row, TOKENIZER)
    assert len(found) == len(exchanges)
    for text, (_, answer) in zip(found, exchanges, strict=True):
        # Newlines that begin an answer may share a token with the header's.
        assert text.lstrip("\n") == f"{answer}<|im_end|>".lstrip("\n")
        assert text.endswith(f"{answer}<|im_end|>")
    whole = TOKENIZER.apply_chat_template(chat(*contents)["messages"], tokenize=False)
    assert row["input_ids"].tolist() == TOKENIZER.encode(whole)


@pytest.mark.skipif(chats.real_tokenizer() is None, reason="KDCORE_REAL_MODELS names none")
def test_the_real_tokenizer_of_qwen(tmp_path):
    tokenizer = chats.real_tokenizer()
    records = [ask(*chats.CHINESE[:2]), ask(*chats.CHINESE[1:]), ask("Hi", "Hello.")]
    rows = rows_of(tmp_path, records, tokenizer, template=QWEN)
    chats.check_law(rows, records, tokenizer, QWEN)


def test_dialogues_begin_as_the_template_writes_them_and_built_in_ones_as_the_tokenizer(tmp_path):
    tokenizer = chats.llama_tokenizer()
    bos = [("<s>", tokenizer.bos_token_id)]
    adding = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=bos)
    tokenizer.backend_tokenizer.post_processor = adding

    def beginnings(template, **options):
        records = [ask("one", "two"), ask("three </s>", "four " * 30)]
        rows = rows_of(tmp_path, records, tokenizer, template=template, **options)
        for row in rows:
            assert (row["labels"] == tokenizer.bos_token_id).sum() == 0
        return [row["input_ids"].tolist()[:3].count(tokenizer.bos_token_id) for row in rows]

    assert beginnings("plain") == beginnings("plain", bos=True) == [1, 1]
    assert beginnings("plain", bos=False) == [0, 0]
    assert beginnings(chats.LLAMA) == beginnings(chats.LLAMA, bos=True) == [1, 1]
    assert beginnings(NAKED) == [0, 0]
    assert beginnings(NAKED, bos=True) == [1, 1]
