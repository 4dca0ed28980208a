"""Converts a released folder's tokenizer to one ``tokenizer.json``, without transformers or sentencepiece.

The ids are those of the slow ``LlamaTokenizer(legacy=False)``, which the authors' scripts use, for every text:

- Special tokens are split off first. Those with ``rstrip`` strip the white space after them, as Python defines it.
- A mark, U+2581, is prepended to the text, even if the text begins with a role marker: the released prompt begins with
  the id of a lone mark. It is left out only if the text begins with a token that the tokenizer itself calls special,
  which role markers are not.
- The rest is BPE by score over the whole stretch between two special tokens, with bytes for unknown characters.

A ``tokenizer.json`` in the folder is not read, since the library's own conversion treats white space and the mark
differently. Decoding differs in three odd places: every token with the flag ``special`` is left out, including
role markers, which the slow tokenizer would print; the space after ``</s>`` is kept; and a first piece of several marks
becomes spaces, where the slow tokenizer may write U+2581.
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
# What Python's str.lstrip removes. The library's own rstrip leaves U+001C to U+001F.
_WHITE_SPACE = "[ \t-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
# Every space except the one inside the only token that has one.
_SPACE = "(?<!{}) | (?!{})".format(*IMAGE_PLACEHOLDER.split(" "))


def released_tokenizer_json(folder: Path) -> str:
    """Returns the text of the ``tokenizer.json`` equivalent to a released folder; ``Tokenizer.load`` reads it.

    Args:
        folder: a Hugging Face folder of the released model, or of a fine-tune that keeps its tokens. It contains
            ``tokenizer.model`` and ``tokenizer_config.json``, and may contain ``added_tokens.json`` and
            ``special_tokens_map.json``.

    Raises:
        ArtifactMissingError: one of the first two is missing.
        ArtifactError: a broken file, or a tokenizer that is not of the released kind; the message names file and key.
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
    # The tokens are matched after the normaliser, which must see what is next to them: rstrip is done there.
    result.add_tokens(
        [tokenizers.AddedToken(token.text, special=token.special, normalized=True) for token in tokens.by_id.values()]
    )
    return str(result.to_str())


def _normalizer(tokens: ReleasedTokens) -> normalizers.Normalizer:
    """Prepends the mark, replaces spaces with it, and removes the white space that tokens strip.

    The library also sends each added token through the normaliser, to learn its normalised form. So a text that is
    exactly one token must come out unchanged, without the mark (see ``Tokenizer.encode``).
    """
    others = _any_of(token.text for token in tokens.by_id.values() if token.text not in tokens.named)
    stripping = _any_of(token.text for token in tokens.by_id.values() if token.rstrip)
    steps = [
        normalizers.Replace(_MARK, " "),
        normalizers.Prepend(_MARK),
        normalizers.Replace(tokenizers.Regex(rf"\A{_MARK}(?={_any_of(tokens.named)}|(?:{others})\z)"), ""),
    ]
    if stripping:
        steps.append(normalizers.Replace(tokenizers.Regex(f"(?<={stripping}){_WHITE_SPACE}"), ""))
    steps.append(normalizers.Replace(tokenizers.Regex(_SPACE), _MARK))
    return normalizers.Sequence(steps)


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts)))


def _merges(scores: dict[str, float], where: str) -> list[tuple[str, str]]:
    """Every way to join two learned pieces into a third, the piece with the best score first.

    SentencePiece goes by the score of the joined piece and takes the leftmost of equals; the library goes by the order
    of this list. The order among the ways to make one piece would matter only where two of them overlap, XYZ with XY
    and YZ the same piece; merging goes from the left, and the tests have found no text where it matters.

    Raises:
        ArtifactError: scores or pieces for which the ids would differ from those of the slow tokenizer.
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
            raise ArtifactError(f"{where}: the piece {piece!r} contains {char!r}, which is not itself a piece")
    # The slow tokenizer encodes "<unk>" before a leading space and removes it again: nothing may merge across it.
    if any(piece.startswith(UNKNOWN[cut:] + _MARK) for cut in range(len(UNKNOWN))):
        raise ArtifactError(f"{where}: the piece {piece!r} joins the end of {UNKNOWN} to a space; no piece may")
