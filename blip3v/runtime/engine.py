"""An opened bundle at work: sessions, tokenizer and embedding table, and how a question becomes a request of them.

The public classes (``VideoLM``, ``Chat``) are thin over this. Letters: t prompt tokens, M video tokens, D width, V rows
of the embedding table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.config import ModelConfig
from blip3v.errors import RequestError
from blip3v.runtime.decoder import Decoder, FloatArray
from blip3v.runtime.encoder import VideoEncoder
from blip3v.runtime.generate import AnswerWriter, run_rows
from blip3v.runtime.kv_cache import KVCache
from blip3v.runtime.options import Control, GenerationOptions
from blip3v.runtime.types import Answer, Delta, Timings, Usage, VideoTokens
from blip3v.text import GenerationConfig, Message, Tokenizer, build_prompt, continue_prompt, splice
from blip3v.video.limits import VideoLimits
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["Engine", "PreparedRequest"]


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """A question that fits the context, ready for prefill."""

    video: VideoTokens
    embeds: FloatArray  # (t,D): what the cache does not hold yet
    earlier_tokens: int  # what the cache holds already
    max_new_tokens: int
    options: GenerationOptions

    @property
    def prompt_tokens(self) -> int:
        """Positions before the answer."""
        return self.earlier_tokens + len(self.embeds)

    @property
    def needed_tokens(self) -> int:
        """Positions that the cache must have room for."""
        return self.prompt_tokens + self.max_new_tokens


@dataclass(frozen=True, eq=False, kw_only=True)
class Engine:
    """The parts of an opened bundle. Safe for several threads: it holds no state of a request."""

    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: str
    generation: GenerationConfig
    preprocessor: PreprocessorConfig
    limits: VideoLimits  # of what a video may cost
    table: NDArray[Any]  # (V,D): one row for each token id, memory-mapped
    decoder: Decoder
    encoder: VideoEncoder
    encoder_hash: str
    backend: str

    def embed(self, ids: Sequence[int]) -> FloatArray:
        """Embeddings (t,D) of token ids, in the decoder's dtype."""
        rows_tD: FloatArray = self.table[np.asarray(ids, np.int64)].astype(self.decoder.dtype, copy=False)
        return rows_tD

    def first_request(self, video: VideoTokens, question: str, options: GenerationOptions) -> PreparedRequest:
        """A conversation's first question.

        Raises:
            RequestError: video tokens of another encoder, a question that cannot be asked, or one that is too long.
        """
        self._check_video(video)
        prompt = build_prompt(self.tokenizer, self.chat_template, self.generation, [Message("user", question)])
        # Before anything is embedded: a hostile prompt may have a million tokens.
        new_tokens = self._fit(prompt.length(len(video)), len(video), options)
        video_MD = video.tokens.astype(self.decoder.dtype, copy=False)  # the video encoder's precision may differ
        embeds_tD = splice(self.embed(prompt.ids), prompt.image_position, video_MD)
        return PreparedRequest(video, embeds_tD, 0, new_tokens, options)

    def next_request(
        self, video: VideoTokens, held_tokens: int, open_ids: Sequence[int], question: str, options: GenerationOptions
    ) -> PreparedRequest:
        """A further question of a conversation.

        Args:
            video: what the conversation is about.
            held_tokens: positions that the cache holds.
            open_ids: tokens of the last answer that the cache does not hold.
            question: the question.
            options: of this turn.

        Raises:
            RequestError: a question that cannot be asked, or a conversation that becomes too long.
        """
        ids = [*open_ids, self.tokenizer.end_id, *continue_prompt(self.tokenizer, self.chat_template, question)]
        new_tokens = self._fit(held_tokens + len(ids), len(video), options)
        return PreparedRequest(video, self.embed(ids), held_tokens, new_tokens, options)

    def run(
        self, cache: KVCache, requests: Sequence[PreparedRequest], control: Control, writers: Sequence[AnswerWriter]
    ) -> Iterator[tuple[int, Delta]]:
        """Answers ``requests`` in the rows of ``cache``; yields (row, piece)."""
        embeds = [request.embeds for request in requests]
        return run_rows(self.decoder, cache, embeds, writers, self.embed, control)

    def writer(self, request: PreparedRequest) -> AnswerWriter:
        """A new answer in the making."""
        return AnswerWriter(self.tokenizer, request.options, request.max_new_tokens)

    def answer(self, request: PreparedRequest, writer: AnswerWriter) -> Answer:
        """The complete answer."""
        assert writer.finish_reason is not None
        video = request.video
        return Answer(
            text=writer.text,
            token_ids=tuple(writer.token_ids),
            finish_reason=writer.finish_reason,
            frames=video.frames,
            usage=Usage(prompt_tokens=request.prompt_tokens, video_tokens=len(video), new_tokens=len(writer.token_ids)),
            timings=Timings(
                file_decode_s=video.file_decode_s,
                preprocess_s=video.preprocess_s,
                encode_s=video.encode_s,
                prefill_s=writer.prefill_s,
                steps_s=writer.steps_s,
                num_steps=writer.num_steps,
            ),
            backend=self.backend,
            logprobs=None if request.options.logprobs is None else tuple(writer.logprobs),
        )

    def _check_video(self, video: VideoTokens) -> None:
        if video.encoder != self.encoder_hash:
            raise RequestError(
                f"the video tokens come from the encoder {video.encoder[:12]} and this bundle's is "
                f"{self.encoder_hash[:12]}; encode the video again with this bundle"
            )
        width = self.config.text.hidden_size
        if video.tokens.ndim != 2 or video.tokens.shape[1] != width or not len(video):
            raise RequestError(
                f"video tokens have shape {video.tokens.shape}; (M, {width}) with M of at least 1 is expected"
            )

    def _fit(self, prompt_tokens: int, video_tokens: int, options: GenerationOptions) -> int:
        """New tokens that this request may have.

        A limit that the caller set is kept or refused; the bundle's own default is cut to what the context leaves.
        """
        context = self.config.text.max_context
        asked = options.max_new_tokens
        new_tokens = asked or max(1, min(self.generation.max_new_tokens, context - prompt_tokens))
        if prompt_tokens + new_tokens > context:
            raise RequestError(
                f"the prompt has {prompt_tokens} tokens ({video_tokens} of them video) and {new_tokens} new ones were "
                f"asked for: {prompt_tokens + new_tokens} in all; the context has {context}; "
                "shorten the question, begin a new conversation, or lower max_new_tokens"
            )
        return new_tokens
