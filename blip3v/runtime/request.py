"""From a question to a request that the decoder can run: options, prompt, embeddings, and whether it fits the context.

Not here: how tokens are chosen and text comes out (``generation.py``). Letters: t prompt tokens, M video tokens,
D width, V rows of the embedding table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blip3v.config import ModelConfig
from blip3v.errors import RequestError
from blip3v.runtime.backends import MAX_DRAFT_TOKENS, Decoder, FloatArray, PromptRow, SplicedPrompt, VideoEncoder
from blip3v.runtime.cache_budget import CacheBudget
from blip3v.runtime.checks import check_number, check_timeout, check_whole, shown
from blip3v.runtime.gpu_array import GpuArray
from blip3v.runtime.speculation import NgramCounts
from blip3v.runtime.types import BackendReport, VideoTokens
from blip3v.text import GenerationConfig, Message, Prompt, Tokenizer, build_prompt, continue_prompt, splice
from blip3v.text.prompt import check_question
from blip3v.video.limits import VideoLimits
from blip3v.video.preprocess import PreprocessorConfig
from blip3v.video.spare_decoder import SpareDecoder

__all__ = [
    "GenerationOptions",
    "Model",
    "Request",
    "check_gpu_array",
    "checked_options",
    "checked_pairs",
    "checked_prompt",
]

_MAX_STOPS = 16
_MAX_STOP_CHARS = 256
_MAX_LOGPROBS = 20
_MAX_NEW_TOKENS = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of one answer. The defaults are greedy and give the same answer each time.

    The order is that of the transformers library: repetition penalty, temperature, top-k, top-p.

    Raises:
        RequestError: a value outside the range named at its field.
    """

    max_new_tokens: int | None = None  # at least 1; None: the bundle's own limit, or what the context leaves if less
    temperature: float = 0.0  # at least 0; 0: greedy, the most likely token
    top_p: float = 1.0  # in (0, 1]: the smallest set of tokens that holds this share
    top_k: int = 0  # at least 0: the k most likely tokens; 0: all
    repetition_penalty: float = (
        1.0  # 0.01 to 100: divides the positive logits of tokens already in this answer; 1: none
    )
    stop: tuple[str, ...] = ()  # the answer ends before the first of these texts
    ignore_stop_token: bool = False  # run to max_new_tokens (for measurements)
    seed: int = 0  # at least 0: of the random choice; the same seed draws the same answer
    logprobs: int | None = None  # 0 to 20: log-probabilities of each token and of this many of the most likely ones
    num_speculative_tokens: int = 0  # 0 to 32: guess up to this many tokens ahead; the answer stays the same; 0: none
    timeout_s: float | None = None  # above 0: from the call to the last token

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            check_whole("max_new_tokens", self.max_new_tokens, 1, _MAX_NEW_TOKENS)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, _MAX_LOGPROBS)
        check_whole("num_speculative_tokens", self.num_speculative_tokens, 0, MAX_DRAFT_TOKENS)
        check_whole("top_k", self.top_k, 0)
        check_whole("seed", self.seed, 0)
        check_number("temperature", self.temperature, "at least 0", lambda value: value >= 0)
        check_number("top_p", self.top_p, "above 0 and at most 1", lambda value: 0 < value <= 1)
        check_number(
            "repetition_penalty", self.repetition_penalty, "from 0.01 to 100", lambda value: 0.01 <= value <= 100
        )
        check_timeout(self.timeout_s)
        if not isinstance(self.ignore_stop_token, bool):
            raise RequestError(f"ignore_stop_token is {shown(self.ignore_stop_token)}; True or False is expected")
        self._check_choice()
        self._check_stop()

    def _check_choice(self) -> None:
        given = {"top_p": self.top_p < 1, "top_k": self.top_k > 0, "seed": self.seed > 0}
        names = [f"`{name}`" for name, is_given in given.items() if is_given]
        if self.temperature == 0 and names:
            raise RequestError(
                "temperature is 0, which always takes the most likely token",
                remedy=f"set `temperature` above 0, or leave out {' and '.join(names)}",
            )

    def _check_stop(self) -> None:
        several = isinstance(self.stop, Iterable) and not isinstance(self.stop, str)
        stop = tuple(self.stop) if several else (None,)
        if not all(isinstance(text, str) for text in stop):
            raise RequestError(f"stop is {shown(self.stop)}; a tuple of texts is expected, for example stop=('.',)")
        object.__setattr__(self, "stop", stop)
        if len(self.stop) > _MAX_STOPS:
            raise RequestError(f"stop holds {len(self.stop)} texts; at most {_MAX_STOPS} are allowed")
        for text in self.stop:
            if not 1 <= len(text) <= _MAX_STOP_CHARS:
                raise RequestError(f"a stop text has {len(text)} characters; 1 to {_MAX_STOP_CHARS} are allowed")


@dataclass(frozen=True, eq=False)
class Request:
    """A question that fits the context; ``Model.embed_prompt`` makes it ready for prefill."""

    video: VideoTokens
    ids: Sequence[int]  # of what the session does not hold yet
    image_position: int | None  # in ``ids``, of what the video tokens replace; None: the session holds them
    num_earlier: int  # tokens that the session holds already
    max_new_tokens: int
    options: GenerationOptions

    @property
    def num_prompt_tokens(self) -> int:
        """Positions before the answer."""
        num_video = 0 if self.image_position is None else len(self.video) - 1
        return self.num_earlier + len(self.ids) + num_video

    @property
    def num_tokens(self) -> int:
        """Positions that the session must have room for."""
        return self.num_prompt_tokens + self.max_new_tokens


class _Prompted(Protocol):
    """What a prompt is made with: a ``Model``, or a ``Bundle`` whose graphs are not opened."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> str: ...

    @property
    def generation(self) -> GenerationConfig: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """The parts of an opened bundle. Safe for several threads: it holds no state of a request.

    ``ngrams`` remembers what earlier answers were made of, which changes the speed of later ones and nothing else.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: str
    generation: GenerationConfig
    preprocessor: PreprocessorConfig
    limits: VideoLimits  # of what a video may cost
    table_VD: NDArray[Any]  # one row for each token id, memory-mapped
    video_encoder: VideoEncoder
    decoder: Decoder
    caches: CacheBudget  # of all requests together
    encoder_hash: str
    backend: BackendReport
    spare_decoder: SpareDecoder  # keeps a process ahead for video files
    ngrams: NgramCounts = field(default_factory=NgramCounts)  # of answers that were decoded speculatively

    def check_speculation(self, options: GenerationOptions) -> None:
        """Raises unless the decoder can do what ``options`` ask for.

        Raises:
            RequestError: speculation, with a decoder that gives the logits of one position at a time.
        """
        if options.num_speculative_tokens and self.decoder.max_verified == 1:
            raise RequestError(
                f"num_speculative_tokens is {options.num_speculative_tokens}, and the decoder of this bundle, which an "
                "earlier version exported, cannot verify several tokens at once",
                remedy="run `blip3v export` again, or leave out `num_speculative_tokens`",
            )

    def embed(self, ids: Sequence[int]) -> FloatArray:
        """Embeddings (t,D) of token ids, in the decoder's dtype."""
        rows_tD: FloatArray = self.table_VD[np.asarray(ids, np.int64)].astype(self.decoder.dtype, copy=False)
        return rows_tD

    def embed_prompt(self, request: Request) -> PromptRow:
        """Embeddings (t,D) of what the session does not hold yet, with the video tokens in their place."""
        embeds_tD = self.embed(request.ids)
        if request.image_position is None:
            return embeds_tD
        tokens: NDArray[Any] | GpuArray = request.video.tokens
        if isinstance(tokens, GpuArray):
            return SplicedPrompt(np.delete(embeds_tD, request.image_position, axis=0), request.image_position, tokens)
        video_MD = tokens.astype(self.decoder.dtype, copy=False)  # its encoder's precision may differ
        spliced_tD: FloatArray = splice(embeds_tD, request.image_position, video_MD)
        return spliced_tD

    def first_request(self, video: VideoTokens, prompt: Prompt, options: GenerationOptions) -> Request:
        """A conversation's first question, as ``checked_prompt`` returned it.

        Raises:
            RequestError: video tokens of another encoder, or too many of them for the context.
        """
        self._check_video(video)
        new_tokens = _fit(self, prompt.length(len(video)), len(video), options)
        return Request(video, prompt.ids, prompt.image_position, 0, new_tokens, options)

    def next_request(
        self, video: VideoTokens, held_tokens: int, open_ids: Sequence[int], question: str, options: GenerationOptions
    ) -> Request:
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
        new_tokens = _fit(self, held_tokens + len(ids), len(video), options, has_earlier_turns=True)
        return Request(video, ids, None, held_tokens, new_tokens, options)

    def _check_video(self, video: VideoTokens) -> None:
        if video.encoder != self.encoder_hash:
            raise RequestError(
                f"the video tokens come from the encoder {video.encoder[:12]} and this bundle's is "
                f"{self.encoder_hash[:12]}; encode the video again with this bundle"
            )
        tokens: NDArray[Any] | GpuArray = video.tokens
        width = self.config.text.hidden_size
        if tokens.shape[1] != width:
            raise RequestError(f"video tokens have shape {tokens.shape}; (M, {width}) with M of at least 1 is expected")
        if isinstance(tokens, GpuArray):
            check_gpu_array("video tokens", tokens, self.decoder)
        elif not np.isfinite(tokens).all():
            raise RequestError("the video tokens hold values that are not finite; encode the video again")


def check_gpu_array(what: str, array: GpuArray, reader: VideoEncoder | Decoder) -> None:
    """Raises unless an opened graph reads an array on the GPU where it is.

    Args:
        what: the array holds, in the plural.
        array: the array.
        reader: the graph.

    Raises:
        RequestError: its back end reads host memory alone, or it takes another dtype.
    """
    if reader.gpu_dtype is None:
        raise RequestError(
            f"the {what} are on a GPU, and {reader.execution.backend} takes them from host memory alone",
            remedy="pass a copy in host memory, or open a bundle with `backend='tensorrt'` or "
            "`backend='onnxruntime-cuda'`",
        )
    if array.dtype != reader.gpu_dtype.name:
        raise RequestError(
            f"the {what} on the GPU are {array.dtype}, and {reader.execution.backend} takes {reader.gpu_dtype.name} "
            "from there; convert them on the GPU, or pass a copy in host memory"
        )


def checked_prompt(parts: _Prompted, question: str, options: GenerationOptions, system: str | None = None) -> Prompt:
    """The prompt of a conversation's first question, in milliseconds and before its video costs anything.

    Args:
        parts: an opened model, or a bundle.
        question: the question.
        options: of its answer.
        system: text of the system turn; None: the model's own; blank: no system turn.

    Raises:
        RequestError: a question or system text that cannot be asked, or one that is too long.
    """
    prompt = _prompt(parts, question, system)
    num_video_tokens = parts.config.num_video_tokens
    _fit(parts, prompt.length(num_video_tokens), num_video_tokens, options)
    return prompt


def _prompt(parts: _Prompted, question: str, system: str | None) -> Prompt:
    if system is not None and not isinstance(system, str):
        raise RequestError(f"system has type {type(system).__name__}; text is expected")
    generation, messages = parts.generation, [Message("user", question)]
    if system is not None and system.strip():
        messages.insert(0, Message("system", system))
    elif system is not None:
        generation = replace(generation, system_prompt=None)
    return build_prompt(parts.tokenizer, parts.chat_template, generation, messages)


def _fit(
    parts: _Prompted,
    prompt_tokens: int,
    video_tokens: int,
    options: GenerationOptions,
    *,
    has_earlier_turns: bool = False,
) -> int:
    """New tokens that a request may have.

    A limit that the caller set is kept or refused; the bundle's own default is cut to what the context leaves.
    """
    context = parts.config.text.max_context
    new_tokens = options.max_new_tokens or min(parts.generation.max_new_tokens, context - prompt_tokens)
    if prompt_tokens < context and prompt_tokens + new_tokens <= context:
        return new_tokens
    prompt = f"the prompt has {prompt_tokens} tokens ({video_tokens} of them video)"
    ways = ["shorten the question", *(["begin a new conversation"] if has_earlier_turns else [])]
    if prompt_tokens >= context:
        message = f"{prompt}, which leaves no room for an answer: the context has {context}"
    else:
        total = prompt_tokens + new_tokens
        message = f"{prompt} and {new_tokens} new ones were asked for: {total} in all; the context has {context}"
        ways.append("lower `max_new_tokens`")
    raise RequestError(message, remedy=f"{', '.join(ways)}, or raise `max_context` if it was lowered")


def checked_options(options: object) -> GenerationOptions:
    """Options as a caller gave them; None: the defaults.

    Raises:
        RequestError: anything else.
    """
    if options is None:
        return GenerationOptions()
    if not isinstance(options, GenerationOptions):
        raise RequestError(f"options has type {type(options).__name__}; GenerationOptions or None is expected")
    return options


def checked_pairs(requests: object) -> list[tuple[Any, str]]:
    """The (video, question) pairs of a batch; the videos are not looked at.

    Raises:
        RequestError: something else, or a question that cannot be asked.
    """
    if isinstance(requests, str | bytes | Mapping) or not isinstance(requests, Iterable):
        raise RequestError(
            f"requests has type {type(requests).__name__}; a list of (video, question) pairs is expected"
        )
    pairs = list(requests)
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise RequestError(f"request {index} is {shown(pair)}; a (video, question) pair is expected")
        check_question(pair[1], f"the question of request {index}")
    return [(video, question) for video, question in pairs]
