"""From a request to its answer: sampling, stop texts, the loop over a decoder session, and the stream of pieces.

``AnswerWriter`` is one answer in the making; ``generate`` drives a session for one row or many. Not here: prompts
(``request.py``) and what runs the graph (``backends/``). Letters: B rows, t prompt tokens, D width, V logits.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import BackendError, RequestError
from blip3v.runtime.backends import DecoderSession
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.owner import ModelOwner
from blip3v.runtime.request import GenerationOptions, Model, Request
from blip3v.runtime.speculation import speculate
from blip3v.runtime.types import Answer, Delta, FinishReason, Timings, TokenLogprob, Usage
from blip3v.text import StreamDecoder, Tokenizer

__all__ = ["AnswerStream", "AnswerWriter", "Sampler", "answer_in_pieces", "answer_together", "generate"]

_Scores = NDArray[np.float32] | NDArray[np.float64]


class AnswerStream:
    """Yields the pieces of an answer; nothing is computed between two calls of ``next``.

    The first ``next`` begins the answer. From then on it can be read to its end even if its ``VideoLM`` or ``Chat`` is
    closed, and it keeps its cache until then. Closing it, leaving its ``with`` block, or dropping the last reference
    to it ends the answer at once and frees its memory.

    Raises:
        UsageError: by the first ``next``: the ``VideoLM`` or ``Chat`` was closed before.
        OutOfMemoryError: by the first ``next``: the cache does not fit into the free memory, or not beside those of
            other unfinished answers (``max_cache_bytes`` of ``VideoLM.open``).
        BackendError, CancelledError, RequestTimeoutError: by any ``next``, as for ``VideoLM.ask``.
    """

    def __init__(self, pieces: Generator[Delta, None, Answer], check_open: Callable[[], object]) -> None:
        self._pieces = pieces
        self._check_open: Callable[[], object] | None = check_open  # until the first piece is asked for
        self._answer: Answer | None = None

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> Delta:
        self._check_not_closed()
        self._check_not_running()
        self._check_open = None
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._answer = end.value
            raise

    @property
    def answer(self) -> Answer:
        """The complete answer.

        Raises:
            RequestError: the stream was not read to its end.
            UsageError: it cannot be, since its ``VideoLM`` or ``Chat`` was closed before it was begun.
        """
        if self._answer is None:
            self._check_not_closed()
            raise RequestError("the answer is not complete; read the stream to its end first")
        return self._answer

    def read(self) -> Answer:
        """Reads the rest and returns the complete answer."""
        for _ in self:
            pass
        return self.answer

    def close(self) -> None:
        """Ends the answer here. May be called more than once.

        Raises:
            RequestError: another thread is computing a piece.
        """
        self._check_not_running()
        self._check_open = None
        self._pieces.close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_not_running(self) -> None:
        if inspect.getgeneratorstate(self._pieces) == inspect.GEN_RUNNING:
            raise RequestError(
                "another thread is reading this stream, which belongs to one thread; a CancelToken ends it from any"
            )

    def _check_not_closed(self) -> None:
        if self._check_open is not None:
            self._check_open()


def answer_in_pieces(owner: ModelOwner, request: Request, deadline: Deadline) -> Generator[Delta, None, Answer]:
    """Answers one request in a session of its own."""
    with owner.lease() as model:
        writer = AnswerWriter(model.tokenizer, request)
        with (
            model.caches.take(1, request.num_tokens),
            closing(model.decoder.session(1, request.num_tokens)) as session,
        ):
            for _, delta in generate(session, [writer], model, deadline):
                yield delta
        return writer.answer(model)


def answer_together(model: Model, requests: Sequence[Request], deadline: Deadline) -> list[Answer]:
    """Answers several requests: as many at a time as the decoder takes, and their cache fits budget and free memory."""
    answers: list[Answer] = []
    with model.caches.take(0, 0) as share:
        while len(answers) < len(requests):
            left = requests[len(answers) :][: model.decoder.max_rows]
            free_bytes = model.decoder.memory.free_bytes()
            num_rows = share.resize_to_rows([request.num_tokens for request in left], free_bytes)
            answers += _answer_rows(model, left[:num_rows], deadline)
    return answers


def _answer_rows(model: Model, requests: Sequence[Request], deadline: Deadline) -> list[Answer]:
    writers = [AnswerWriter(model.tokenizer, request) for request in requests]
    with closing(model.decoder.session(len(requests), max(request.num_tokens for request in requests))) as session:
        for _ in generate(session, writers, model, deadline):
            pass
    return [writer.answer(model) for writer in writers]


def generate(
    session: DecoderSession, writers: Sequence[AnswerWriter], model: Model, deadline: Deadline
) -> Iterator[tuple[int, Delta]]:
    """Runs all rows to their ends and yields (row, piece) as they come; a finished row costs no further step.

    A single row whose options ask for it is decoded speculatively.

    Args:
        session: as many rows as writers. A single row may hold earlier tokens; afterwards it holds the prompt and every
            new token but the last.
        writers: one for each row.
        model: embeds prompts and tokens.
        deadline: checked before each run of the graph.

    Raises:
        CancelledError, RequestTimeoutError: from ``deadline``.
        BackendError: from the graph.
    """
    start_s = time.perf_counter()
    logits_BV = session.prefill([model.embed_prompt(writer.request) for writer in writers], deadline)
    for writer in writers:
        writer.prefill_s = time.perf_counter() - start_s
    if len(writers) == 1 and writers[0].request.options.num_speculative_tokens:
        yield 0, writers[0].push(logits_BV[0])
        yield from ((0, piece) for piece in speculate(session, writers[0], model, deadline))
        return
    running = list(range(len(writers)))  # which writer each row of the session belongs to
    while True:
        for row, index in enumerate(running):
            yield index, writers[index].push(logits_BV[row])
        if all(writers[index].finish_reason for index in running):
            return
        _drop_finished(session, running, writers)
        deadline.check()
        start_s = time.perf_counter()
        logits_BV = session.step(model.embed([writers[index].token_ids[-1] for index in running]))
        step_s = time.perf_counter() - start_s
        for index in running:
            writers[index].steps_s += step_s
            writers[index].num_steps += 1


def _drop_finished(session: DecoderSession, running: list[int], writers: Sequence[AnswerWriter]) -> None:
    for row in reversed(range(len(running))):
        if writers[running[row]].finish_reason is not None:
            session.drop_row(row)
            running[row] = running[-1]
            running.pop()


class AnswerWriter:
    """Chooses tokens, turns them into text and knows when the answer is complete.

    Args:
        tokenizer: decodes tokens and knows the stop token.
        request: what is answered.
    """

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        options = request.options
        self.request = request
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
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    @property
    def text(self) -> str:
        """All text returned so far."""
        return self._text.given

    def push(self, logits_V: NDArray[np.float32]) -> Delta:
        """Chooses the next token and returns the text that is certain after it; sets ``finish_reason`` at the end."""
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
        elif len(self.token_ids) == self.request.max_new_tokens:
            text += self._last_text()
            self.finish_reason = "stop" if self._text.stopped else "length"
        return Delta(text, token_id)

    def answer(self, model: Model) -> Answer:
        """The complete answer."""
        assert self.finish_reason is not None
        request, video = self.request, self.request.video
        return Answer(
            text=self.text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            frames=video.frames,
            usage=Usage(
                num_prompt_tokens=request.num_prompt_tokens,
                num_video_tokens=len(video),
                num_new_tokens=len(self.token_ids),
            ),
            timings=Timings(
                file_decode_s=video.file_decode_s,
                preprocess_s=video.preprocess_s,
                encode_s=video.encode_s,
                prefill_s=self.prefill_s,
                steps_s=self.steps_s,
                num_steps=self.num_steps,
                num_draft_tokens=self.num_draft_tokens,
                num_accepted_tokens=self.num_accepted_tokens,
            ),
            backend=model.backend,
            logprobs=None if request.options.logprobs is None else tuple(self.logprobs),
        )

    def _last_text(self) -> str:
        text = self._text.add(self._decoder.finish())
        return text if self._text.stopped else text + self._text.finish()


class _HeldText:
    """Holds text back while it may still become part of a stop text, or white space at either end of the answer."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.given = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """Adds text and returns what is certain by now; nothing follows a stop text."""
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


class Sampler:
    """Chooses the tokens of one answer; each has its own random generator, so answers do not depend on neighbours."""

    def __init__(self, options: GenerationOptions) -> None:
        self._options = options
        self._rng = np.random.default_rng(options.seed)

    def choose(self, logits_V: NDArray[np.float32], earlier: Collection[int]) -> int:
        """The next token id.

        Args:
            logits_V: (V,) as the model gave them.
            earlier: token ids already in this answer; ``repetition_penalty`` applies to them.

        Raises:
            BackendError: a logit is NaN or infinite.
        """
        if not np.isfinite(logits_V).all():
            raise BackendError(
                "the decoder gave logits that are not finite; its weights or its precision are broken, or so are video "
                "tokens that were given on a GPU: run `blip3v verify` on the bundle, or export it in fp32"
            )
        options = self._options
        scores_V = penalise(logits_V, earlier, options.repetition_penalty)
        if options.temperature == 0:
            return int(scores_V.argmax())
        shares_V = probabilities(scores_V, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
        # Inverse of the cumulative sum: one random number a token, whatever the filters leave.
        sums_V = shares_V.cumsum()
        return int(np.searchsorted(sums_V, self._rng.random() * sums_V[-1], side="right"))

    def logprob(self, logits_V: NDArray[np.float32], token_id: int) -> TokenLogprob | None:
        """Log-probability of ``token_id`` and of the most likely tokens; None where it was not asked for."""
        count = self._options.logprobs
        if count is None:
            return None
        logprobs_V = log_softmax(logits_V)
        best = np.argsort(-logprobs_V, kind="stable")[:count]
        top = tuple((int(i), float(logprobs_V[i])) for i in best)
        return TokenLogprob(token_id, float(logprobs_V[token_id]), top)


def log_softmax(logits_V: _Scores) -> NDArray[np.float64]:
    """Natural log of the softmax over the last axis, in float64."""
    shifted_V = logits_V.astype(np.float64) - logits_V.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted_V - np.log(np.exp(shifted_V).sum(-1, keepdims=True))
    return result


def penalise(logits_V: _Scores, earlier: Collection[int], penalty: float) -> NDArray[np.float64]:
    """Makes used tokens less likely (CTRL, arXiv 1909.05858): positive logits / penalty, negative * penalty."""
    scores_V = logits_V.astype(np.float64)
    if penalty != 1 and earlier:
        used = np.unique(np.fromiter(earlier, np.int64, len(earlier)))
        scores = scores_V[used]
        scores_V[used] = np.where(scores > 0, scores / penalty, scores * penalty)
    return scores_V


def probabilities(scores_V: _Scores, *, temperature: float, top_k: int = 0, top_p: float = 1.0) -> NDArray[np.float64]:
    """Shares (V,) that sum to 1 after temperature, top-k and top-p.

    Args:
        scores_V: (V,) logits.
        temperature: above 0.
        top_k: tokens to keep; 0: all. Ties at the border go to the lower id.
        top_p: share to keep: the most likely tokens until their sum reaches it; at least one stays.
    """
    with np.errstate(over="ignore"):
        scaled_V = scores_V.astype(np.float64) / temperature
        if not np.isfinite(scaled_V).all():  # a temperature near 0
            scaled_V = (scores_V - scores_V.max()).astype(np.float64) / temperature
    shares_V = np.exp(log_softmax(scaled_V))
    if not top_k and top_p == 1:
        return shares_V
    order = np.argsort(-shares_V, kind="stable")
    keep = len(order) if top_k == 0 else min(top_k, len(order))
    if top_p < 1:
        kept = shares_V[order[:keep]]
        before = np.cumsum(kept) - kept
        # The share counts within what top-k left, as in the transformers library.
        keep = max(1, int((before < top_p * kept.sum()).sum()))
    filtered_V = np.zeros_like(shares_V)
    filtered_V[order[:keep]] = shares_V[order[:keep]]
    result: NDArray[np.float64] = filtered_V / filtered_V.sum()
    return result
