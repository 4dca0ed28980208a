"""Decodes a stream of token ids piece by piece: each id costs the same, however long the text has become."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blip3v.text.tokenizer import Tokenizer  # which decodes whole lists of ids with the class below

__all__ = ["StreamDecoder"]


class StreamDecoder:
    """Decodes ids one at a time; the pieces joined are ``Tokenizer.decode`` of all ids.

    A character whose UTF-8 bytes are spread over several tokens is returned with the last of them. Bytes that are not
    UTF-8 become U+FFFD, see ``Tokenizer.decode``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = tokenizer.utf8_decoder()
        self._first = True

    def push(self, token_id: int) -> str:
        """Text that this token completes; empty while a character is incomplete, and for special tokens.

        Raises:
            RequestError: an id that the tokenizer does not have.
        """
        if self._tokenizer.is_special(token_id):
            return ""
        piece = self._tokenizer.piece(token_id, first=self._first)
        self._first = False
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """The rest of the text: U+FFFD if a character is incomplete, else nothing."""
        return self._utf8.decode(b"", final=True)
