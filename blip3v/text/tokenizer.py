"""Text to token ids and back, with the tokenizers library, from one ``tokenizer.json``.

Not here: the chat template (``template.py``) and the training of a tokenizer (``train_tokenizer.py``).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers

from blip3v.errors import ArtifactError, ArtifactMissingError, RequestError
from blip3v.text.pieces import TokenBytes, Utf8Decoder
from blip3v.text.special import END, IMAGE, PAD, REQUIRED_TOKENS
from blip3v.text.stream import StreamDecoder

__all__ = ["Tokenizer", "check_text"]

# The released tokenizer.json has 2 MB; anything far larger is not a tokenizer.
_MAX_FILE_BYTES = 64 * 2**20
_MAX_ID = 2**20  # several times the largest vocabularies


def check_text(name: str, text: object) -> None:
    """Refuses what is not a text of valid Unicode.

    Args:
        name: what it is, for the message: "the question".
        text: what a caller gave.

    Raises:
        RequestError: not a ``str``, or one with a lone surrogate, which cannot be written as UTF-8.
    """
    if not isinstance(text, str):
        raise RequestError(f"{name} has type {type(text).__name__}; a str is expected")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} has a lone surrogate at {error.start}; send valid Unicode") from error


@contextlib.contextmanager
def _library_errors(failure: str) -> Iterator[None]:
    """Turns whatever the tokenizers library raises inside the block into an ``ArtifactError`` that begins so.

    It raises bare ``Exception``, and where its native code panics (on a pattern that takes too long) a
    ``PanicException``, which is no ``Exception``.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ArtifactError(f"{failure}: {error}; write the model folder or the bundle again") from error


def _check_ids(backend: tokenizers.Tokenizer, where: str) -> None:
    """Refuses ids that no embedding table has; the library would walk through all ids below them."""
    vocab = backend.get_vocab(with_added_tokens=True)
    token = max(vocab, key=vocab.__getitem__, default="")
    if vocab.get(token, 0) > _MAX_ID:
        raise ArtifactError(
            f"{where} gives the token {token[:40]!r} the id {vocab[token]}; at most {_MAX_ID} is allowed; write the "
            "model folder or the bundle again"
        )


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
        self._where = where
        _check_ids(backend, where)
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
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{path} is not a tokenizer: {error}") from error
        return cls.parse(text, where=str(path))

    @classmethod
    def parse(cls, text: str, *, where: str = "tokenizer") -> Tokenizer:
        """The tokenizer of the text of a ``tokenizer.json``.

        Args:
            text: the file's content.
            where: named in errors, for example the path.

        Raises:
            ArtifactError: as ``load``.
        """
        with _library_errors(f"{where} is not a tokenizer of the tokenizers library"):
            backend = tokenizers.Tokenizer.from_str(text)
        return cls(backend, where=where)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``. Special tokens in the text are recognised; none are added.

        Raises:
            RequestError: not a text, or one that cannot be written as UTF-8 (a lone surrogate).
            ArtifactError: the tokenizer fails on this text, as one does whose patterns take too long.
        """
        check_text("the text", text)
        with _library_errors(f"{self._where} cannot encode a text of {len(text)} characters"):
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

        How many follows the tokenizer's kind: SentencePiece writes one for each byte, as the slow tokenizer does, and a
        byte-level tokenizer one for each longest part of a character. Complete characters next to them are kept.

        Raises:
            RequestError: an id that the tokenizer does not have.
        """
        # Not the library's decoder: it replaces a whole run of byte tokens if a single one of them is broken.
        stream = StreamDecoder(self)
        return "".join([*map(stream.push, ids), stream.finish()])

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

    def is_special(self, token_id: int) -> bool:
        """Whether decoding leaves the token out."""
        return token_id in self._skipped

    def piece(self, token_id: int, *, first: bool = False) -> bytes:
        """Bytes that a token adds to the text: none for a special token.

        Args:
            token_id: of the token.
            first: it is the first of its text, which in SentencePiece begins without a space.

        Raises:
            RequestError: an id that the tokenizer does not have.
        """
        token = self.token(token_id)
        return b"" if self.is_special(token_id) else self._token_bytes(token, first=first)

    def utf8_decoder(self) -> Utf8Decoder:
        """A decoder for the joined pieces of a text."""
        return self._token_bytes.utf8_decoder()

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
