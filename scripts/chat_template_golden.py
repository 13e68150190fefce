"""Writes crates/lapidary/tests/golden/chat_template.json: prompts rendered by `transformers` (Jinja2).

    pip install transformers jinja2 gguf
    python scripts/chat_template_golden.py SmolLM2-135M-Instruct.Q4_1.gguf crates/lapidary/tests/golden

The first template is the one in the GGUF file; the others are short ones of our own that use what the templates of
other families use: exceptions, namespaces, loop controls, macros, string methods, reversed slices, tojson, the date.
"""

import datetime
import json
import pathlib
import sys

import gguf
import transformers.utils.chat_template_utils as chat

OTHERS = {
    # Turns alternate, the system message joins the first one, roles are renamed.
    "alternating": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '</turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<turn>model\n' }}
{%- endif -%}
""",
    # A dated head, optional tools, whitespace left to the block settings.
    "dated": """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
<|head|>Today: {{ date_string }}
{% if tools is not none %}
tools: {{ tools | tojson(indent=4) }}
{% endif %}
  {% for message in messages %}
    {% if message.role == 'tool' %}{% continue %}{% endif %}
    {% if message.content == 'STOP' %}{% break %}{% endif %}
[{{ message.role | upper }}] {{ message.content }}
  {% endfor %}
{% if add_generation_prompt %}
[ASSISTANT]
{%- endif %}

""",
    # Python's methods, a namespace, a reversed slice, thoughts cut away, generation marks.
    "thinking": """{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- macro turn(role, content) %}<|s|>{{ role }}
{{ content }}<|e|>
{% endmacro %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- if loop.index0 > ns.last or loop.last %}
                {%- set content = '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content %}
            {%- endif %}
        {%- endif %}
        {%- generation -%}{{ turn('assistant', content) }}{%- endgeneration -%}
    {%- else %}
        {{- turn(message['role'].title(), content.replace('\t', '    ')) }}
    {%- endif %}
    {%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}
{%- endfor %}
{{- messages | tojson }}{{ messages[0] | tojson(indent=2) }}
{%- for key, value in messages[0].items() %}{{ key ~ '=' ~ value.upper() ~ ';' }}{% endfor %}
{%- if add_generation_prompt and eos_token %}
    {{- '<|s|>assistant\n' ~ eos_token }}
{%- endif %}
""",
}


def turns(*contents, system=None):
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ["user", "assistant"][i % 2], "content": c} for i, c in enumerate(contents)]


CONVERSATIONS = [
    turns("Hi"),
    turns("Hi", system="Be brief."),
    turns(" What is\tgravity? \n", "<think>\nhm\n</think>\n\nA force.", "And \"mass\" <b>&'é😀</b>?", system="S\n"),
    turns("a", "<think>x</think>b", "<r>c</r>", "no thought"),
    turns("STOP"),
    turns("{{ bos_token }} {% raw %}", ""),
    [{"role": "assistant", "content": "I begin."}],
    [{"role": "user", "content": "a"}, {"role": "tool", "content": "t"}, {"role": "user", "content": "b"}],
    [],
]


def render(template, messages, add_generation_prompt):
    values = dict(messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>",
                  tools=None, documents=None)
    try:
        return {"prompt": template.render(**values)}
    except Exception as error:
        return {"error": str(error)}


def main():
    path, out = sys.argv[1:]
    templates = {"smollm2": gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents(), **OTHERS}

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 2, 29)

    chat.datetime = Fixed
    golden = []
    for name, source in templates.items():
        template = chat._compile_jinja_template(source)
        cases = [{"messages": messages, "add_generation_prompt": add, **render(template, messages, add)}
                 for messages in CONVERSATIONS for add in (False, True)]
        golden.append({"name": name, "template": source, "cases": cases})
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    pathlib.Path(out, "chat_template.json").write_text(text + "\n")


main()
