"""The fp32 model's own greedy answers, found by checking drafts: one pass over its layers for all answers at once.

    draft      a  b  c  d         what somebody else believes the answer to be
    reference  a  b  x            one pass gives its choice after each prefix; what follows the first difference is void
    answer     a  b  x            exactly what greedy decoding gives; the next draft has to begin so

Every draft adds at least one token to an unfinished answer, so the passes that it takes are one more than the
differences in the worst answer, not one for each token: the 4B model can be checked a layer at a time.
"""

# Shapes: B rows, S positions of a row, F frames, L tokens, M video tokens, N positions, D width, V logits.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.model.language import embedding_table
from blip3v.model.layerwise import PackedBatch, packed_logits
from blip3v.model.weights import empty_model, fill
from blip3v.text.prompt import Prompt

__all__ = ["AnswerRules", "ClipPrompt", "Reference", "ReferenceAnswer", "clip_batches", "reference_video_tokens"]

FloatArray = NDArray[np.float32]

# Positions of several rows that pass through a layer together, padding included: bounds the memory of activations.
_BATCH_POSITIONS = 4096
# Patches of several clips that are encoded together.
_BATCH_PATCHES = 8192


@dataclass(frozen=True, kw_only=True)
class AnswerRules:
    """When an answer ends: after ``end_id``, which is its last token then, or after ``max_new_tokens``."""

    end_id: int
    max_new_tokens: int

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        """Whether nothing follows these tokens."""
        return len(token_ids) == self.max_new_tokens or (len(token_ids) > 0 and token_ids[-1] == self.end_id)


@dataclass(frozen=True)
class ClipPrompt:
    """A question about one of the clips."""

    clip: int
    prompt: Prompt


@dataclass
class ReferenceAnswer:
    """What is known of an answer: its first tokens, and the logits (V,) that chose each of them."""

    token_ids: list[int] = field(default_factory=list)
    logits: list[FloatArray] = field(default_factory=list)
    is_complete: bool = False


@dataclass(frozen=True)
class _Row:
    """Several unfinished answers about one clip, which share what stands before their questions."""

    embeds_SD: FloatArray
    question_S: NDArray[np.int64]
    wanted: tuple[tuple[int, int, int], ...]  # which answer, its first position in the row, how many positions


class Reference:
    """The language model in fp32.

    Args:
        config: the model's.
        weights: by released name; the original ones.
        prompts: the questions.
        video: the reference's video tokens (M, D) of each clip.
        rules: when answers end.
        progress: called with (layers done, total layers) during each pass.

    Attributes:
        answers: one for each prompt.
        num_passes: over all layers, so far.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        prompts: Sequence[ClipPrompt],
        video: Sequence[FloatArray],
        rules: AnswerRules,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._text = config.text
        self._weights = weights
        self._prompts = prompts
        self._video = video
        self._rules = rules
        self._progress = progress
        self._table_VD: FloatArray = embedding_table(weights, config.text).numpy()
        self.answers = [ReferenceAnswer() for _ in prompts]
        self.num_passes = 0

    @property
    def memory_bytes(self) -> int:
        """Memory that a pass takes besides what is held already. An estimate."""
        text = self._text
        width, inner = text.hidden_size, text.intermediate_size
        kv_width = text.num_kv_heads * text.head_dim
        layer = width * (2 * width + 2 * kv_width + 3 * inner)
        head = text.num_logits * width
        activations = _BATCH_POSITIONS * (4 * inner + 8 * width)
        return 4 * (max(2 * layer, 2 * head) + activations)

    def check(self, drafts: Mapping[int, Sequence[int]]) -> None:
        """Extends each answer by the tokens of its draft that the reference would choose, and by its next choice.

        Args:
            drafts: by number of the prompt: all tokens of the answer, which begin with those known so far and are
                more than those. Drafts of complete answers are ignored.

        Raises:
            ValueError: a draft does not begin so. Nothing is added to any answer.
        """
        open_drafts = {i: ids for i, ids in drafts.items() if not self.answers[i].is_complete}
        if not open_drafts:
            return
        for index, draft in open_drafts.items():
            known = self.answers[index].token_ids
            if len(draft) <= len(known) or list(draft[: len(known)]) != known:
                raise ValueError(f"draft {index} is {list(draft)}; it has to begin with {known} and go on")
        rows = sorted(self._rows(open_drafts), key=lambda row: len(row.embeds_SD))
        batches = list(_batched(rows))
        logits = packed_logits(
            self._text, self._weights, [_batch(batch, self._text.hidden_size) for batch in batches], self._progress
        )
        self.num_passes += 1
        for batch, logits_NV in zip(batches, logits, strict=True):
            start = 0
            for index, _, count in (wanted for row in batch for wanted in row.wanted):
                self._accept(index, open_drafts[index], logits_NV[start : start + count])
                start += count

    def drop_incomplete(self) -> None:
        """Forgets the answers that are not complete, so that their next drafts may begin with anything."""
        self.answers = [answer if answer.is_complete else ReferenceAnswer() for answer in self.answers]

    def _accept(self, index: int, draft: Sequence[int], logits_NV: FloatArray) -> None:
        answer = self.answers[index]
        for drafted, logits_V in zip(draft[len(answer.token_ids) :], logits_NV, strict=True):
            chosen = int(logits_V.argmax())
            answer.token_ids.append(chosen)
            answer.logits.append(logits_V.copy())  # a view would keep the rejected ones too
            answer.is_complete = self._rules.is_complete(answer.token_ids)
            if answer.is_complete or chosen != drafted:
                return

    def _rows(self, drafts: Mapping[int, Sequence[int]]) -> Iterator[_Row]:
        groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for index in drafts:
            asked = self._prompts[index]
            before = tuple(asked.prompt.ids[: asked.prompt.image_position])
            groups.setdefault((asked.clip, before), []).append(index)
        for (clip, before), indices in groups.items():
            parts = [self._table_VD[list(before)], self._video[clip]]
            numbers, wanted = [0] * (len(parts[0]) + len(parts[1])), []
            for number, index in enumerate(indices, start=1):
                prompt = self._prompts[index].prompt
                ids = [*prompt.ids[prompt.image_position + 1 :], *drafts[index][:-1]]
                count = len(drafts[index]) - len(self.answers[index].token_ids)
                parts.append(self._table_VD[ids])
                numbers += [number] * len(ids)
                wanted.append((index, len(numbers) - count, count))
            yield _Row(np.concatenate(parts), np.array(numbers), tuple(wanted))


def reference_video_tokens(
    config: ModelConfig, weights: Mapping[str, Tensor], batches: Iterator[FloatArray]
) -> list[FloatArray]:
    """Returns the fp32 video tokens (M, D) of each clip.

    Args:
        config: the model's.
        weights: by released name; the original ones.
        batches: clips (B, F, 3, S, S) in [-1, 1].
    """
    model = empty_model(config)
    for name in ("vision_encoder", "vision_tokenizer"):
        fill(model.get_submodule(name), weights, f"{name}.")
    with torch.inference_mode():
        return [tokens_MD for clips in batches for tokens_MD in model.encode_video(torch.from_numpy(clips)).numpy()]


def clip_batches(config: ModelConfig, clips: Sequence[Callable[[], FloatArray]]) -> Iterator[FloatArray]:
    """Yields the pixels of several clips at a time, (B, F, 3, S, S), as many as are encoded well together."""
    size = max(1, _BATCH_PATCHES // (config.num_frames * config.vision.num_patches))
    for first in range(0, len(clips), size):
        yield np.stack([pixels() for pixels in clips[first : first + size]])


def _batched(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Groups rows, sorted by length, so that each group has at most ``_BATCH_POSITIONS`` or is a single row."""
    group: list[_Row] = []
    for row in rows:
        if group and (len(group) + 1) * len(row.embeds_SD) > _BATCH_POSITIONS:
            yield group
            group = []
        group.append(row)
    yield group


def _batch(rows: Sequence[_Row], width: int) -> PackedBatch:
    length = max(len(row.embeds_SD) for row in rows)
    embeds_BSD = np.zeros((len(rows), length, width), np.float32)
    question_BS = np.empty((len(rows), length), np.int64)
    for row, embeds_SD, question_S in zip(rows, embeds_BSD, question_BS, strict=True):
        used = len(row.embeds_SD)
        embeds_SD[:used] = row.embeds_SD
        question_S[:used], question_S[used:] = row.question_S, row.question_S[-1] + 1
    places = [(at, start + n) for at, row in enumerate(rows) for _, start, count in row.wanted for n in range(count)]
    row_N, at_N = np.array(places).T
    return PackedBatch(embeds_BSD, question_BS, row_N, at_N)
