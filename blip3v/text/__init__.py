"""Text in and out: the tokenizer, the chat template, and where ``<image>`` becomes video tokens."""

from blip3v.text.generation import RELEASED_SYSTEM_PROMPT, GenerationConfig
from blip3v.text.prompt import Prompt, build_prompt, continue_prompt, splice
from blip3v.text.stream import StreamDecoder
from blip3v.text.template import RELEASED_TEMPLATE, Message, render_chat
from blip3v.text.tokenizer import Tokenizer
from blip3v.text.train_tokenizer import train_tokenizer

__all__ = [
    "RELEASED_SYSTEM_PROMPT",
    "RELEASED_TEMPLATE",
    "GenerationConfig",
    "Message",
    "Prompt",
    "StreamDecoder",
    "Tokenizer",
    "build_prompt",
    "continue_prompt",
    "render_chat",
    "splice",
    "train_tokenizer",
]
