"""The tokenizer files of a released Hugging Face folder at a small size, for any test that reads such a folder.

``write_released_tokenizer(folder)`` writes tokenizer.model (the committed model of ``NUM_PIECES`` pieces),
added_tokens.json, special_tokens_map.json and tokenizer_config.json as in the release, with the ids of the added tokens
after those of the pieces: with the default, 608 base tokens (the count of the preset `tiny`) and 611 in all. With
``num_pieces=RELEASED_NUM_PIECES`` the added tokens have the released ids, 32000 to 32014.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

SMALL_MODEL = Path(__file__).parent / "text" / "goldens" / "released-small.model"
NUM_PIECES = 596
RELEASED_NUM_PIECES = 32_000
NUM_BASE_TOKENS = NUM_PIECES + 12

_SWALLOWING = (
    "</s> <|assistant|> <|placeholder1|> <|placeholder2|> <|placeholder3|> <|placeholder4|> <|system|> <|end|> "
)
_SWALLOWING += "<|placeholder5|> <|placeholder6|> <|user|>"
_TAIL = ["<|endoftext|>", *_SWALLOWING.split()[1:], "<pad>", "<image>", "<image placeholder>", "<|endofchunk|>"]
_ADDITIONAL = _TAIL[-3:]
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif "
    "message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def write_released_tokenizer(folder: Path, *, num_pieces: int = NUM_PIECES, model: Path = SMALL_MODEL) -> Path:
    """Writes the four files into ``folder``, which is created if missing, and returns it.

    If ``num_pieces`` exceeds ``NUM_PIECES``, the committed model is padded with pieces of one private-use character.
    With another ``model``, ``num_pieces`` is the number of its pieces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_filled = num_pieces - NUM_PIECES if model == SMALL_MODEL else 0
    fill = b"".join(_piece(chr(0xF0000 + n), -(1e6 + n)) for n in range(num_filled))
    (folder / "tokenizer.model").write_bytes(model.read_bytes() + fill)
    _write(folder / "added_tokens.json", {text: num_pieces + n for n, text in enumerate(_TAIL)})
    plain = {key: _flags(text) for key, text in (("bos_token", "<s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>"))}
    additional = [_flags(text) for text in _ADDITIONAL]
    _write(
        folder / "special_tokens_map.json",
        {**plain, "eos_token": "<|end|>", "additional_special_tokens": additional},
    )
    _write(folder / "tokenizer_config.json", _config(num_pieces))
    return folder


def _config(num_pieces: int) -> dict[str, object]:
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **{text: num_pieces + n for n, text in enumerate(_TAIL)}}
    decoder = {
        str(token_id): {**_flags(text, rstrip=text in _SWALLOWING.split()), "special": text != "</s>"}
        for text, token_id in ids.items()
    }
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": True,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": _ADDITIONAL,
        "bos_token": "<s>",
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|end|>",
        "legacy": False,
        "model_max_length": 4096,
        "pad_token": "<pad>",
        "padding_side": "left",
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def _flags(text: str, *, rstrip: bool = False) -> dict[str, object]:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": rstrip, "single_word": False}


def _write(path: Path, value: dict[str, object]) -> None:
    """Writes JSON as the transformers library does, byte for byte."""
    in_order = dict(sorted(value.items()))
    path.write_text(json.dumps(in_order, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _piece(text: str, score: float) -> bytes:
    """One more normal piece; protobuf messages can be concatenated."""
    content = text.encode("utf-8")
    message = b"\x0a" + bytes([len(content)]) + content + b"\x15" + struct.pack("<f", score)
    return b"\x0a" + bytes([len(message)]) + message
