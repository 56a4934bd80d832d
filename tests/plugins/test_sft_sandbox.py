"""Chat templates are programs of strangers: they run with limits, and only with what is fixed."""

import threading

import chats
import pytest
from chat_templates import CHATML, HEADED, STRICT, THOUGHTFUL
from chats import LLAMA, NAKED, QWEN, STRIPPING, THINKING, ask, chat, rows_of
from kdcore_sft.formats import Dialogue
from kdcore_sft.templates import Template

from kdcore import RunError

TOKENIZER = chats.chat_tokenizer()
NESTED = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set ns = namespace(x=X) %}{% for i in range(99) %}{% set ns.x = Y %}{% endfor %}"
RECURSIVE = "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}"


def doubled(first, then):
    return DOUBLED.replace("X", first).replace("Y", then)


LONG = "writes more than 10,"
RUNAWAYS = [
    ("{{ 'a' * 2000000000 }}", LONG),
    ("{{ 2000000000 * 'a' }}", LONG),
    ("{{ [1] * 2000000000 }}", LONG),
    ("{{ ('a' * 100000).replace('a', 'b' * 100000) }}", LONG),
    ("{{ ('a' * 100000).join('b' * 100000) }}", LONG),
    ("{{ range(100000) | join('b' * 100000) }}", LONG),
    ("{{ range(100000) | map('string') | join('b' * 100000) }}", LONG),
    ("{{ 10 ** 100 ** 100 ** 100 ** 100 }}", LONG),
    (doubled("'a'", "ns.x ~ ns.x"), LONG),
    (doubled("'a'", "ns.x + ns.x"), LONG),
    (doubled("[1]", "[ns.x, ns.x]"), LONG),
    (doubled("[1]", "{'a': ns.x, 'b': ns.x}"), LONG),
    ("{% set x %}{% for a in range(99999) %}" + "a" * 999 + "{% endfor %}{% endset %}", LONG),
    (NESTED, "takes too many steps"),
    (RECURSIVE + "{{ f(99) }}", "takes too many steps"),
    ("{{ 'a'.ljust(2000000000) }}", "calls ljust with a number above 1,000,000"),
    ("{{ 'a' | center(2000000000) }}", "calls center with a number above 1,000,000"),
    ("{{ [1] | tojson(indent=2000000000) }}", "calls tojson with a number above 1,000,000"),
    ("{{ '%2000000000d' % 1 }}", "formats with a width of six digits"),
    ("{{ '%*d' % (2000000000, 1) }}", "formats with a width of six digits"),
    ("{{ '%2000000000d' | format(1) }}", "formats with a width of six digits"),
    ("{{ '{:2000000000}'.format(1) }}", "formats with a width of six digits"),
    ("{{ '{:{}}'.format(1, 2000000000) }}", "calls format with a number above 1,000,000"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("template", "said"), RUNAWAYS)
def test_templates_that_run_away_end_in_a_sentence(tmp_path, template, said):
    with pytest.raises(RunError) as refused:
        rows_of(tmp_path, [ask("a", "b")], TOKENIZER, template=template + CHATML)
    assert f"record 1: the chat template {said}" in str(refused.value)
    assert str(refused.value).endswith("; set another template in [data]")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ range(1000000000) }}", "number above"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ namespace(__class__=1) }}", "private names"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "__class__ is private"),
        ("{{" + "(" * 5000, "recursion"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% include 'a' %}", "no loader"),
        ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "recursion"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{{ raise_exception('only two turns') }}", "only two turns"),
    ],
)
def test_what_templates_cannot_do_is_reported(tmp_path, template, said):
    with pytest.raises(RunError) as refused:
        rows_of(tmp_path, [ask("a", "b")], TOKENIZER, template=template + CHATML)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nothing_runs_on():
    template, threads = Template(NESTED, {}), threading.active_count()
    with pytest.raises(RunError, match="r: the chat template takes too many steps"):
        template.render(Dialogue([], "r"))
    assert threading.active_count() == threads


def test_dialogues_may_be_long(tmp_path):
    """The limits grow with what there is to write."""
    long = chat(*["a word or two, " * 2000, "yes"] * 300)
    template = Template(THOUGHTFUL, {})
    assert len(template.render(Dialogue(long["messages"], ""))) > 9_000_000


TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MORE = "{%- for a in [1, 2, 3] -%}{{ loop.length - loop.index0 }}{%- if loop.last -%}!{%- endif -%}"
MORE += "{%- if a == 2 -%}{%- break -%}{%- endif -%}{%- endfor -%}"
MORE += "{% generation %}{{ {'b': 'é<', 'a': [1]} | tojson(indent=1) }}{% endgeneration %}"
MORE += "{{ messages | map(attribute='role') | join(', ') }}{{ '%s-%d' % ('a', 7) }}"
MORE += "{{ x is defined }}"
MORE += "{{ (messages | selectattr('role', 'equalto', 'user') | list)[0].content[::-1] }}"


@pytest.mark.parametrize(
    "template", [QWEN, LLAMA, STRIPPING, NAKED, THINKING, THOUGHTFUL, HEADED, STRICT, CHATML, MORE]
)
@pytest.mark.parametrize("header", [True, False])
def test_templates_write_what_the_library_makes_them_write(template, header):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = chat(" Hi ", "Hello.\n", "Who?", "狐狸", system="" if template == STRICT else "Be.")
    turns = messages["messages"][1 if template == STRICT else 0 :]
    day = {"date_string": "today"}
    options = {**TOKENS, **(day if template == HEADED else {})}
    theirs = render_jinja_template(
        [turns], chat_template=template, add_generation_prompt=header, **options
    )
    made = Template(template, TOKENS, options=day if template == HEADED else {})
    assert made.render(Dialogue(turns, ""), header=header) == theirs[0][0]
