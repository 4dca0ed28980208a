"""The released template, and templates that try to break out, run forever or exhaust the memory."""

from __future__ import annotations

import pytest

from blip3v.errors import Blip3vError, ConfigError, RequestError
from blip3v.text import RELEASED_TEMPLATE, Message, render_chat
from blip3v.text.template import MAX_PROMPT_CHARS

TURNS = [Message("system", "Be brief."), Message("user", "<image>\nWhat turns?")]


def test_the_released_form() -> None:
    assert render_chat(RELEASED_TEMPLATE, TURNS) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\n<image>\nWhat turns?<|end|>\n<|assistant|>\n"
    )


def test_without_generation_prompt_the_text_ends_with_the_end_token() -> None:
    turns = [Message("user", "What?"), Message("assistant", "A circle.")]
    assert render_chat(RELEASED_TEMPLATE, turns, add_generation_prompt=False) == (
        "<|user|>\nWhat?<|end|>\n<|assistant|>\nA circle.<|end|>\n<|end|>"
    )


def test_a_template_may_use_conditions_slices_and_loop_variables() -> None:
    template = (
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}[{{ messages[0].content | trim }}]"
        "{% else %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{{ loop.index }}:{{ m['content'] }}{% if not loop.last %},{% endif %}{% endfor %}"
    )
    assert render_chat(template, [*TURNS, Message("assistant", "it")]) == "[Be brief.]1:<image>\nWhat turns?,2:it"


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(RequestError, match="allowed: system, user, assistant"):
        Message("tool", "x")


HOSTILE = {
    "class": "{{ ''.__class__ }}",
    "class-by-item": "{{ ''['__class__'] }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "call": "{{ messages.append(1) }}",
    "globals": "{{ lipsum.__globals__['os'] }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "attr-filter": "{{ '' | attr('__class__') }}",
    "import": "{% import 'x' as y %}",
    "include": "{% include '/etc/passwd' %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "range": "{% for i in range(1000000000) %}{% endfor %}",
    "nested-loops": "{% for a in messages %}{% for b in messages %}{% endfor %}{% endfor %}",
    "recursive-loop": "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "many-loops": "{% for a in messages %}{% endfor %}" * 17,
    "list-bomb": "{% set a = [1] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
    "concat-bomb": "{% set a = 'aa' %}" + "{% set a = a ~ a %}" * 40,
    "add-bomb": "{% set a = 'aa' %}" + "{% set a = a + a %}" * 40,
    "list-add-bomb": "{% set a = messages %}" + "{% set a = a + a %}" * 40,
    "product": "{{ 'a' * 10000000000 }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "percent": "{{ '%10000000000s' % 'a' }}",
    "center": "{{ 'a' | center(10000000000) }}",
    "unknown-name": "{{ nobody }}",
    "syntax": "{% for %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep-sum": "{{ 1" + "+1" * 8000 + " }}",
    "deep-item": "{{ messages" + "[0]" * 5000 + " }}",
    "deep-if": "{% if 1 %}" * 1000 + "{% endif %}" * 1000,
    "deep-not": "{{ " + "not " * 3000 + "1 }}",
    "long": "a" * 20_000,
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="chat template"):
        render_chat(template, TURNS)


def test_long_output_is_refused() -> None:
    with pytest.raises(RequestError, match="prompt is longer"):
        render_chat("{% for m in messages %}" + "{{ m.content }}" * 20 + "{% endfor %}", [Message("user", "x" * 10**5)])


def test_long_messages_are_refused() -> None:
    with pytest.raises(Blip3vError, match="messages are longer"):
        render_chat(RELEASED_TEMPLATE, [Message("user", "x" * (MAX_PROMPT_CHARS + 1))])
