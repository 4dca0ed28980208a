"""The chat template: Jinja text in, one prompt string out, safe with untrusted templates.

A template is part of a bundle's data, so it runs in Jinja's immutable sandbox and may use only a small part of the
language: text, conditions, and loops that are not nested. Calls, macros, imports, list literals and multiplication are
refused when the template is compiled, so time and memory stay bounded and no Python object can be reached.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from blip3v.errors import ConfigError, RequestError
from blip3v.text.special import END, ROLES

__all__ = ["MAX_PROMPT_CHARS", "RELEASED_TEMPLATE", "Message", "render_chat"]

# The chat form of the released tokenizer: a marker, a newline, the text, <|end|>, a newline for each turn.
RELEASED_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)

MAX_PROMPT_CHARS = 2**20
_MAX_TEMPLATE_CHARS = 2**14
_MAX_LOOPS = 16
_FILTERS = ("default", "length", "lower", "trim", "upper")
# Without nested loops, calls, macros and list literals, time is bounded by the lengths of template and messages.
_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getitem, nodes.Getattr),
    *(nodes.Slice, nodes.For, nodes.If, nodes.CondExpr, nodes.Assign, nodes.Add, nodes.Filter, nodes.Test),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Sub, nodes.Mod),
)


@dataclass(frozen=True)
class Message:
    """One turn: ``role`` is system, user or assistant.

    Raises:
        RequestError: another role.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RequestError(f"role {self.role!r} is unknown; allowed: {', '.join(ROLES)}")


def render_chat(template: str, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """Renders the text of a conversation.

    Args:
        template: Jinja text that may use ``messages``, ``add_generation_prompt`` and ``eos_token``.
        messages: the turns in order. Their content is used as is; ``build_prompt`` checks it.
        add_generation_prompt: whether the text ends where the assistant's answer begins.

    Raises:
        ConfigError: a template that is invalid, or that uses something that is not allowed.
        RequestError: the text is longer than ``MAX_PROMPT_CHARS``.
    """
    if sum(len(message.content) for message in messages) > MAX_PROMPT_CHARS:
        raise RequestError(f"the messages are longer than {MAX_PROMPT_CHARS} characters; send shorter ones")
    values = {
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "add_generation_prompt": add_generation_prompt,
        "eos_token": END,
    }
    try:
        return _join(_compile(template).generate(values))
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ConfigError(f"the chat template failed: {error}; the released one is valid for every model") from error


class _Environment(ImmutableSandboxedEnvironment):
    """Limits ``+``, since doubling a string in every line would exhaust the memory."""

    intercepted_binops = frozenset(["+", "%"])

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        if operator == "%" and not (isinstance(left, int) and isinstance(right, int)):
            raise jinja2.TemplateRuntimeError("% is allowed only between integers")
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            if len(left) + len(right) > MAX_PROMPT_CHARS:
                raise jinja2.TemplateRuntimeError(f"a string is longer than {MAX_PROMPT_CHARS} characters")
        elif operator == "+" and not (isinstance(left, int) and isinstance(right, int)):
            raise jinja2.TemplateRuntimeError("+ is allowed only between two strings or two integers")
        return super().call_binop(context, operator, left, right)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    if len(template) > _MAX_TEMPLATE_CHARS:
        raise ConfigError(
            f"the chat template has {len(template)} characters; at most {_MAX_TEMPLATE_CHARS} are allowed"
        )
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False, optimized=False
    )
    environment.globals.clear()
    try:
        tree = environment.parse(template)
        _check(tree)
        return environment.from_string(tree)
    except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        raise ConfigError(f"the chat template is not valid: {error}") from error


def _check(tree: nodes.Template) -> None:
    for node in _walk(tree):
        if not isinstance(node, _NODES):
            raise ConfigError(f"the chat template uses {_named(node)}, which is not allowed")
        if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            raise ConfigError(f"the chat template uses the filter {node.name}; allowed: {', '.join(_FILTERS)}")
    loops = list(tree.find_all(nodes.For))
    if len(loops) > _MAX_LOOPS:
        raise ConfigError(f"the chat template has {len(loops)} loops; at most {_MAX_LOOPS} are allowed")
    for loop in loops:
        if loop.find(nodes.For) is not None:
            raise ConfigError("the chat template has a nested loop; only one level is allowed")


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def _named(node: nodes.Node) -> str:
    return f"{type(node).__name__.lower()} in line {node.lineno}"


def _join(pieces: Iterator[str]) -> str:
    result: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_PROMPT_CHARS:
            raise RequestError(f"the prompt is longer than {MAX_PROMPT_CHARS} characters; send a shorter question")
        result.append(piece)
    return "".join(result)
