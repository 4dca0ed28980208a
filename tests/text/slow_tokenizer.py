"""The slow ``LlamaTokenizer(legacy=False)``, reimplemented plainly with the sentencepiece package.

Its four steps: U+2581 becomes a space, and one is prepended to the text; added tokens are split off, and those with
rstrip strip the white space after them; the rest is SentencePiece without a dummy prefix; a lone mark before a named
token is removed again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined] # generated at import time

MARK = "\u2581"
NAMED = {"<s>", "<|end|>", "<unk>", "<pad>", "<image>", "<image placeholder>", "<|endofchunk|>"}


class SlowTokenizer:
    def __init__(self, folder: Path):
        model = ModelProto.FromString((folder / "tokenizer.model").read_bytes())
        model.normalizer_spec.add_dummy_prefix = False
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        self.ids = {token["content"]: int(key) for key, token in decoder.items()}
        self.skipped = {int(key) for key, token in decoder.items() if token["special"]}
        self.added = {token_id: token for token, token_id in self.ids.items()}
        self.stripping = {token["content"] for token in decoder.values() if token["rstrip"]}

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        text = MARK + text.replace(MARK, " ")
        parts = [part for part in re.split(f"({'|'.join(map(re.escape, self.ids))})", text) if part]
        ids: list[int] = []
        before = ""
        for part in parts:
            ids += [self.ids[part]] if part in self.ids else self._plain(part, before)
            before = part
        alone = ids[:1] == [self.pieces.piece_to_id(MARK)] and any(ids[1:2] == [self.ids[token]] for token in NAMED)
        return ids[1:] if alone else ids

    def decode(self, ids: list[int]) -> str:
        """``decode(ids, skip_special_tokens=True)``, with every token flagged as special left out.

        (The slow tokenizer itself leaves out only the named ones, and prints role markers.)
        """
        text, run = "", list[str]()
        for token_id in (token_id for token_id in ids if token_id not in self.skipped):
            if token_id in self.added:
                text += self._joined(run) + self.added[token_id]
                run = []
            else:
                run.append(self.pieces.id_to_piece(token_id))
        return text + self._joined(run)

    def _joined(self, run: list[str]) -> str:
        """``LlamaTokenizer.convert_tokens_to_string``: the first token loses its mark, SentencePiece does the rest.

        (The slow tokenizer takes the mark off the token; if the rest is no piece, as with a run of four marks, it
        prints U+2581 for its spaces.)
        """
        text = str(self.pieces.decode(run)) if run else ""
        return text[1:] if run and run[0].startswith(MARK) else text

    def _plain(self, part: str, before: str) -> list[int]:
        if before in self.stripping:
            part = part.lstrip()
        if not part.startswith((MARK, " ")):
            return self.pieces.encode(part)
        return self.pieces.encode("<unk>" + part)[len(self.pieces.encode("<unk>")) :]
