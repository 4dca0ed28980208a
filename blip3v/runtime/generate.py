"""The token loop: from prompts in embeddings to answers, one row or many.

``AnswerWriter`` is one answer in the making; ``run_rows`` drives the decoder for all of them. Not here: prompts
(``engine.py``) and the choice of a token (``sampling.py``). Letters: B rows, t prompt tokens, D width, V logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from blip3v.runtime.decoder import Decoder, FloatArray
from blip3v.runtime.kv_cache import KVCache
from blip3v.runtime.options import Control, GenerationOptions
from blip3v.runtime.sampling import Sampler, TokenLogprob
from blip3v.runtime.types import Delta, FinishReason
from blip3v.text import StreamDecoder, Tokenizer

__all__ = ["AnswerWriter", "run_rows"]


class AnswerWriter:
    """Chooses tokens, turns them into text and knows when the answer is complete.

    Args:
        tokenizer: gives the text of tokens and the stop token.
        options: of the request.
        max_new_tokens: at least 1; the request's or the bundle's.
    """

    def __init__(self, tokenizer: Tokenizer, options: GenerationOptions, max_new_tokens: int) -> None:
        self._options = options
        self._max_new_tokens = max_new_tokens
        self._stop_id = None if options.ignore_stop_token else tokenizer.end_id
        self._sampler = Sampler(options)
        self._decoder = StreamDecoder(tokenizer)
        self._text = _HeldText(options.stop)
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self.prefill_s = 0.0
        self.steps_s = 0.0
        self.num_steps = 0

    @property
    def text(self) -> str:
        """All text given out so far."""
        return self._text.given

    def push(self, logits_V: NDArray[np.float32]) -> Delta:
        """Chooses the next token and gives the text that is certain after it; sets ``finish_reason`` at the end."""
        assert self.finish_reason is None
        token_id = self._sampler.choose(logits_V, self.token_ids)
        if token_id == self._stop_id:
            self.finish_reason = "stop"
            return Delta(self._last_text(), None)
        logprob = self._sampler.logprob(logits_V, token_id)
        self.token_ids.append(token_id)
        if logprob is not None:
            self.logprobs.append(logprob)
        text = self._text.add(self._decoder.push(token_id))
        if self._text.stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._max_new_tokens:
            text += self._last_text()
            self.finish_reason = "stop" if self._text.stopped else "length"
        return Delta(text, token_id)

    def _last_text(self) -> str:
        text = self._text.add(self._decoder.finish())
        return text if self._text.stopped else text + self._text.finish()


class _HeldText:
    """Gives text out as soon as it cannot become part of a stop text or white space at an end of the answer."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.given = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """Takes new text and gives what is certain by now; nothing more follows a stop text."""
        self._held += text
        found = [self._held.find(stop) for stop in self._stops if stop in self._held]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]
            return self.finish()
        return self._give(len(self._held) - self._open_length())

    def finish(self) -> str:
        """What is still held, without the white space at its end."""
        return self._give(len(self._held))

    def _give(self, length: int) -> str:
        ready, self._held = self._held[:length], self._held[length:]
        certain = ready.rstrip()
        self._held = ready[len(certain) :] + self._held
        if not self.given:
            certain = certain.lstrip()
        self.given += certain
        return certain

    def _open_length(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


def run_rows(
    decoder: Decoder,
    cache: KVCache,
    prompts: Sequence[FloatArray],
    writers: Sequence[AnswerWriter],
    embed: Callable[[Sequence[int]], FloatArray],
    control: Control,
) -> Iterator[tuple[int, Delta]]:
    """Runs all rows to their ends and yields (row, piece) as they come; a finished row costs no further step.

    Args:
        decoder: runs the graph.
        cache: as many rows as prompts. With one row it may hold earlier tokens; afterwards it holds the prompt and
            every new token but the last.
        prompts: embeddings (t,D) of each row.
        writers: one for each row.
        embed: ids to embeddings (B,D).
        control: asked before each run of the graph.

    Raises:
        CancelledError, RequestTimeoutError: from ``control``.
        BackendError: from the graph.
    """
    start_s = time.perf_counter()
    logits_BV = decoder.prefill(cache, prompts, control.check)
    for writer in writers:
        writer.prefill_s = time.perf_counter() - start_s
    running = list(range(len(writers)))  # which writer each row of the cache belongs to
    while True:
        for row, index in enumerate(running):
            yield index, writers[index].push(logits_BV[row])
        if all(writers[index].finish_reason for index in running):
            return
        _drop_finished(cache, running, writers)
        control.check()
        start_s = time.perf_counter()
        logits_BV = decoder.step(cache, embed([writers[index].token_ids[-1] for index in running]))
        step_s = time.perf_counter() - start_s
        for index in running:
            writers[index].steps_s += step_s
            writers[index].num_steps += 1


def _drop_finished(cache: KVCache, running: list[int], writers: Sequence[AnswerWriter]) -> None:
    for row in reversed(range(len(running))):
        if writers[running[row]].finish_reason is not None:
            cache.drop_row(row)
            running[row] = running[-1]
            running.pop()
