"""Chat templates, tokenizers and dialogues, and the law that their rows must keep."""

import json
import os
from itertools import groupby
from pathlib import Path

import tiny
from kdcore_sft import Sft
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# As Qwen2.5's: who says nothing about the system gets a message all the same.
QWEN = """\
{%- if messages[0]['role'] == 'system' -%}
{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role != 'system' or not loop.first -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

# As Llama-2's: the system message lies in the user's first turn, everything is stripped, there is
# no header to go on from, and turns must alternate.
LLAMA = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set loop_messages = messages[1:] -%}{%- set system = messages[0]['content'] -%}
{%- else -%}
{%- set loop_messages = messages -%}{%- set system = false -%}
{%- endif -%}
{%- for message in loop_messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant') }}
{%- endif -%}
{%- set content = message['content'] -%}
{%- if loop.first and system -%}
{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else -%}{{ ' ' + content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""

# Strips what is said, and cannot be asked to go on: its header shows in whole dialogues only.
STRIPPING = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content.strip() + '<|im_end|>\\n' }}
{%- endfor -%}"""

# Has no special tokens at all.
NAKED = "{% for m in messages %}{{ m.role + ':' + m.content + '\\n' }}{% endfor %}"

# Thinks before the last answer, as Qwen3 does: more lies between header and answer.
THINKING = """\
{%- for message in messages -%}
{%- set before = '<think></think>\\n' if loop.last and message.role == 'assistant' else '' -%}
{{ '<|im_start|>' + message.role + '\\n' + before + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

CHINESE = ["把下面的句子翻译成英文。", "今天天气很好。我们去公园散步吧。", "东京是日本的首都。🦊"]


def chat_tokenizer(template=QWEN, *, pad="<|endoftext|>", eos="<|im_end|>"):
    """Byte-level BPE with ChatML's special tokens."""
    tokenizer = tiny.byte_tokenizer(
        [*tiny.TEXTS, *CHINESE, "Yes, of course.\n\nNo.\n\n"] * 2, 420, eos="<|endoftext|>"
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": eos}
    )
    tokenizer.pad_token = pad
    tokenizer.chat_template = template
    return tokenizer


def llama_tokenizer(template=LLAMA):
    tokenizer = tiny.llama_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def merging_tokenizer(template=NAKED):
    """One that knows no words: it merges the colon of a header with the letter after it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(":", "y"), ("e", "s"), (":y", "es")]
    ids = ["<|endoftext|>", *letters, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(ids)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = tiny.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def real_tokenizer():
    """Qwen2.5's, where KDCORE_REAL_MODELS names a folder that has it."""
    folder = Path(os.environ.get("KDCORE_REAL_MODELS", "-")) / "qwen2.5-tokenizer"
    if not folder.is_dir():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def ask(question, answer, **more):
    return {"instruction": question, "output": answer, **more}


def chat(*contents, system=None):
    """Turns of the user's and the assistant's."""
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": each} for n, each in enumerate(contents)]
    opening = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*opening, *turns]}


def data_of(folder, records, **options):
    path = folder / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return Sft(path=str(path), **{"rows": "one"} | options)


def rows_of(folder, records, tokenizer, **options):
    """Each dialogue's row."""
    data = data_of(folder, records, **options)
    return list(data.make_rows("train", tokenizer, seed=0, epoch=0))


def stretches(row):
    """The ids that are learned without a gap, stretch by stretch."""
    found = []
    for learned, some in groupby(range(len(row["labels"])), lambda n: row["labels"][n] != -100):
        if learned:
            places = list(some)
            assert [row["labels"][n] for n in places] == [row["input_ids"][n] for n in places]
            found.append([int(row["input_ids"][n]) for n in places])
    return found


def learned(row, tokenizer):
    """What is learned, as texts."""
    return [tokenizer.decode(each) for each in stretches(row)]


def check_law(rows, records, tokenizer, template, end="<|im_end|>"):
    """Rows have the ids of the whole dialogue, and learn each answer and its one end, no more."""
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        question = {"role": "user", "content": record["instruction"]}
        turns = [question, {"role": "assistant", "content": record["output"]}]
        options = {"tokenize": False, "chat_template": template}
        whole = tokenizer.apply_chat_template(turns, **options)
        ids = tokenizer.encode(whole, add_special_tokens=False)
        assert row["input_ids"].tolist() == ids, "not the ids of the whole dialogue"
        asked = tokenizer.apply_chat_template([question], add_generation_prompt=True, **options)
        header = tokenizer.decode(row["input_ids"][: _first(row)])
        assert header == asked, "the prompt is not what a model is asked with"
        assert learned(row, tokenizer) == [record["output"] + end]


def _first(row):
    return next(n for n, label in enumerate(row["labels"]) if label != -100)
