"""Chat templates in the manner of those that models have: with tools, thoughts, parts and dates."""

# As Qwen3's: thoughts stay before the answers after the last question, and may stand in contents.
THOUGHTFUL = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{ '<|im_start|>system\\nTools:' }}
{%- for tool in tools -%}{{ '\\n' + (tool | tojson) }}{%- endfor -%}{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- for m in messages -%}
{%- set said = m.content if m.content is string else '' -%}
{%- if m.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if m.reasoning_content is string -%}
{%- set thought = m.reasoning_content -%}
{%- elif '</think>' in said -%}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{ '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}
{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif -%}
{{ said }}
{%- for call in m.tool_calls or [] -%}
{{ '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{ call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- elif m.role == 'tool' -%}
{{ '<|im_start|>user\\n<tool_response>\\n' + said + '\\n</tool_response><|im_end|>\\n' }}
{%- else -%}
{{ '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif -%}
{%- endif -%}"""

# As Llama 3's: contents are stripped, a call ends with another token than words and shows no
# words, and the day is written unless it is given.
HEADED = """\
{{ bos_token }}
{%- if not date_string is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}{%- endif -%}
{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '<|eot_id|>' }}
{%- for m in messages -%}
{%- if m.role == 'assistant' and 'tool_calls' in m -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{{ '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' -}}
{{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|eom_id|>' }}
{%- else -%}
{%- set role = 'ipython' if m.role == 'tool' else m.role -%}
{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + (m.content | trim) + '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}"""

# As Mistral's: turns of the user and the assistant alternate, calls aside, and must have ids.
STRICT = """\
{{ bos_token }}
{%- set ns = namespace(n=0) -%}
{%- for m in messages -%}
{%- if m.role == 'user' or (m.role == 'assistant' and m.tool_calls is not defined) -%}
{%- if (m.role == 'user') != (ns.n % 2 == 0) -%}
{{ raise_exception('roles must alternate') }}
{%- endif -%}
{%- set ns.n = ns.n + 1 -%}
{%- endif -%}
{%- if m.role == 'user' -%}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'tool' -%}{{ '[RESULT] ' + m.content + ' [/RESULT]' }}
{%- elif m.tool_calls is defined -%}
{%- if m.tool_calls[0].id | length != 9 -%}{{ raise_exception('ids have 9 letters') }}{%- endif -%}
{{ '[CALL] ' + (m.tool_calls | tojson) + eos_token }}
{%- else -%}{{ ' ' + m.content + eos_token }}
{%- endif -%}
{%- endfor -%}"""

# As a vision model's: contents are parts, and nothing else is looked at.
PARTED = """\
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- for part in m.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

CHATML = """\
{%- for m in messages -%}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
