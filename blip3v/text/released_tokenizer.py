"""The tokenizer of a released Hugging Face folder as one ``tokenizer.json``, without transformers or sentencepiece.

The ids are those of the slow ``LlamaTokenizer(legacy=False)``, which the authors' scripts use, on every text:

- Special tokens are cut out first. Those with ``rstrip`` swallow the white space after them, by Python's notion of it.
- A mark, U+2581, is written before the text, also where the text begins with a role marker: the released prompt begins
  with the id of a lone mark. It is left out only where the text begins with a token that the tokenizer itself calls
  special, which role markers are not.
- The rest is BPE by score over the whole stretch between two special tokens, bytes where a character is unknown.

What is not here: a ``tokenizer.json`` in the folder is not read, since the library's own conversion treats white space
and the mark in another way. Decoding leaves out every token with the flag ``special``, role markers too; the slow
tokenizer would print those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers

from blip3v.errors import ArtifactError
from blip3v.text.released_tokens import ReleasedTokens
from blip3v.text.sentencepiece_file import SentencePieceFile
from blip3v.text.special import IMAGE_PLACEHOLDER, UNKNOWN

__all__ = ["released_tokenizer_json"]

_MARK = "\u2581"
# What Python's str.lstrip takes away. The library's own rstrip leaves U+001C to U+001F.
_WHITE_SPACE = "[ \t-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
# Every space but that of the one token that has one.
_SPACE = "(?<!{}) | (?!{})".format(*IMAGE_PLACEHOLDER.split(" "))


def released_tokenizer_json(folder: Path) -> str:
    """The text of the ``tokenizer.json`` that a released folder amounts to; ``Tokenizer.load`` reads it.

    Args:
        folder: a Hugging Face folder of the released model, or of a fine-tune that keeps its tokens. It holds
            ``tokenizer.model`` and ``tokenizer_config.json``, and may hold ``added_tokens.json`` and
            ``special_tokens_map.json``.

    Raises:
        ArtifactMissingError: one of the first two is not there.
        ArtifactError: a file that is broken, or a tokenizer not of the released kind; file and key are named.
    """
    model = SentencePieceFile.load(folder / "tokenizer.model")
    tokens = ReleasedTokens.load(folder, len(model.pieces))
    vocab = {piece: piece_id for piece_id, piece in enumerate(model.pieces)}
    merges = _merges(model.scores, str(folder / "tokenizer.model"))
    result = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=UNKNOWN, byte_fallback=True))
    result.normalizer = _normalizer(tokens)
    result.decoder = decoders.Sequence(
        [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # The tokens are looked for behind the normaliser, which must see what stands next to them: rstrip is done there.
    result.add_tokens(
        [tokenizers.AddedToken(token.text, special=token.special, normalized=True) for token in tokens.by_id.values()]
    )
    return str(result.to_str())


def _normalizer(tokens: ReleasedTokens) -> normalizers.Normalizer:
    """Writes the mark before the text and in place of spaces, and takes away what tokens swallow.

    The library also sends each added token through the normaliser, to learn what it looks like behind it. So a text
    that is one token and nothing else must come out as it is, without the mark (see ``Tokenizer.encode``).
    """
    others = _any_of(token.text for token in tokens.by_id.values() if token.text not in tokens.named)
    swallowing = _any_of(token.text for token in tokens.by_id.values() if token.rstrip)
    steps = [
        normalizers.Replace(_MARK, " "),
        normalizers.Prepend(_MARK),
        normalizers.Replace(tokenizers.Regex(rf"\A{_MARK}(?={_any_of(tokens.named)}|(?:{others})\z)"), ""),
    ]
    if swallowing:
        steps.append(normalizers.Replace(tokenizers.Regex(f"(?<={swallowing}){_WHITE_SPACE}"), ""))
    steps.append(normalizers.Replace(tokenizers.Regex(_SPACE), _MARK))
    return normalizers.Sequence(steps)


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts)))


def _merges(scores: dict[str, float], where: str) -> list[tuple[str, str]]:
    """Every way to put a learned piece together from two learned ones, the piece of the best score first.

    SentencePiece goes by the score of the whole and takes the leftmost of equals; the library goes by the order of
    this list. In which order the ways of one piece stand would matter only where two of them overlap, XYZ with XY and
    YZ the same piece; merging from the left leaves no such text that the tests could find.

    Raises:
        ArtifactError: scores or pieces with which the ids would not be those of the slow tokenizer.
    """
    longer = sorted((piece for piece in scores if len(piece) > 1), key=lambda piece: -scores[piece])
    if len({scores[piece] for piece in longer}) < len(longer):
        raise ArtifactError(f"{where}: two pieces have the same score; each needs its own")
    merges: list[tuple[str, str]] = []
    for piece in longer:
        _check_piece(piece, scores, where)
        ways = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [way for way in ways if way[0] in scores and way[1] in scores]
    return merges


def _check_piece(piece: str, scores: dict[str, float], where: str) -> None:
    for char in piece:
        if char not in scores:
            raise ArtifactError(f"{where}: the piece {piece!r} holds {char!r}, which is no piece of its own")
    # The slow tokenizer encodes "<unk>" before a leading space and cuts it off again: nothing may merge across.
    if any(piece.startswith(UNKNOWN[cut:] + _MARK) for cut in range(len(UNKNOWN))):
        raise ArtifactError(f"{where}: the piece {piece!r} joins the end of {UNKNOWN} to a space; none may")
