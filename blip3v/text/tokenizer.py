"""Text to token ids and back, with the tokenizers library, from one ``tokenizer.json``.

Not here: the chat template (``template.py``) and the training of a tokenizer (``train_tokenizer.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from blip3v.errors import ArtifactError, ArtifactMissingError, RequestError
from blip3v.text.pieces import TokenBytes
from blip3v.text.special import END, IMAGE, PAD, REQUIRED_TOKENS

__all__ = ["Tokenizer"]

# The released tokenizer.json has 2 MB; anything far larger is not a tokenizer.
_MAX_FILE_BYTES = 64 * 2**20


class Tokenizer:
    """The tokenizer of a model folder or bundle.

    Args:
        backend: the loaded tokenizer. Its truncation and padding, if any, are switched off here.
        where: named in errors, for example the path.

    Raises:
        ArtifactError: a special token that prompts need is missing, or the decoder is not supported.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, where: str = "tokenizer") -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = {token.content: token_id for token_id, token in added.items()}
        self._skipped = frozenset(token_id for token_id, token in added.items() if token.special)
        for token in REQUIRED_TOKENS:
            if token not in self._added:
                raise ArtifactError(
                    f"{where} has no special token {token}; a BLIP-3-Video tokenizer needs "
                    f"{' '.join(REQUIRED_TOKENS)}; write the model folder again with `blip3v train`"
                )
        self._token_bytes = TokenBytes(json.loads(backend.to_str())["decoder"], frozenset(self._added), where)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads ``tokenizer.json``.

        Raises:
            ArtifactMissingError: no such file.
            ArtifactError: not a tokenizer, or one without the special tokens that prompts need.
        """
        if not path.is_file():
            raise ArtifactMissingError(f"{path} does not exist; every model folder and bundle contains it")
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ArtifactError(f"{path} has {size} bytes; a tokenizer has at most {_MAX_FILE_BYTES}")
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise ArtifactError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error
        return cls(backend, where=str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``. Special tokens in the text are recognised; none are added.

        Raises:
            RequestError: the text cannot be written as UTF-8 (a lone surrogate).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(f"the text has a lone surrogate at {error.start}; send valid Unicode") from error
        if text in self._added:  # a token that is the whole text would escape a released tokenizer's normaliser
            return list(self._backend.encode(text + END, add_special_tokens=False).ids[:-1])
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_after(self, token: str, text: str) -> list[int]:
        """Token ids of ``text`` where it follows the special token ``token``, as an answer does.

        They differ from ``encode(text)`` if the tokenizer marks the beginning of a whole text, as SentencePiece does,
        or if ``token`` strips white space.

        Raises:
            RequestError: ``token`` is not a special token, or the text cannot be written as UTF-8.
        """
        if token not in self._added:
            raise RequestError(f"{token!r} is not a special token; allowed: {' '.join(self._added)}")
        ids = self.encode(token + text)
        return ids[ids.index(self._added[token]) + 1 :]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens; bytes that are not UTF-8 become U+FFFD.

        Raises:
            RequestError: an id that the tokenizer does not have.
        """
        for token_id in ids:
            self.token(token_id)
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def id(self, token: str) -> int:
        """Id of a token, special or not.

        Raises:
            RequestError: the tokenizer has no such token.
        """
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise RequestError(f"the tokenizer has no token {token!r}; its added tokens: {' '.join(self._added)}")
        return int(token_id)

    def token(self, token_id: int) -> str:
        """The token of an id, as the vocabulary writes it.

        Raises:
            RequestError: an id that the tokenizer does not have.
        """
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            raise RequestError(f"token id {token_id} is unknown; the tokenizer has ids 0 to {self.num_tokens - 1}")
        return str(token)

    def piece(self, token_id: int) -> bytes:
        """Bytes that a token adds to the text: none for a special token.

        Raises:
            RequestError: an id that the tokenizer does not have.
        """
        token = self.token(token_id)
        return b"" if token_id in self._skipped else self._token_bytes(token)

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding drops one space at the beginning of a text."""
        return self._token_bytes.strips_first_space

    @property
    def added_tokens(self) -> dict[str, int]:
        """Special and added tokens that are recognised inside a text, with their ids."""
        return dict(self._added)

    @property
    def num_tokens(self) -> int:
        """Total number of tokens: base, special and added."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def image_id(self) -> int:
        """Id of ``<image>``, which the video tokens replace."""
        return self._added[IMAGE]

    @property
    def end_id(self) -> int:
        """Id of ``<|end|>``, which ends a turn."""
        return self._added[END]

    @property
    def pad_id(self) -> int:
        """Id of ``<pad>``."""
        return self._added[PAD]
