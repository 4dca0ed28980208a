"""Decodes a stream of token ids piece by piece: each id costs the same, however long the text has become."""

from __future__ import annotations

import codecs

from blip3v.text.tokenizer import Tokenizer

__all__ = ["StreamDecoder"]


class StreamDecoder:
    """Decodes ids one at a time; the pieces joined equal ``Tokenizer.decode`` of all ids.

    A character whose UTF-8 bytes are spread over several tokens is returned with the last of them. Bytes that are not
    UTF-8 become U+FFFD. (With a SentencePiece tokenizer the number of U+FFFD in a run of broken bytes may differ from
    that of ``decode``, which looks back over the whole run.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_space = tokenizer.strips_first_space

    def push(self, token_id: int) -> str:
        """Text that this token completes; empty while a character is incomplete, and for special tokens.

        Raises:
            RequestError: an id that the tokenizer does not have.
        """
        return self._first(self._utf8.decode(self._tokenizer.piece(token_id)))

    def finish(self) -> str:
        """The rest of the text: U+FFFD if a character is incomplete, else nothing."""
        return self._first(self._utf8.decode(b"", final=True))

    def _first(self, text: str) -> str:
        if self._strip_space and text:
            self._strip_space = False
            return text.removeprefix(" ")
        return text
