"""What one turn of a measurement gives: the seconds of its stages, and the times of its requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blip3v.errors import UsageError

__all__ = ["RequestTimes", "Sample", "Shape"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a turn asks of a bundle.

    Raises:
        UsageError: a count below 1, or a batch and requests at once together.
    """

    num_video_tokens: int | None = None  # that the language model sees, repeated or cut; None: the encoder's own
    batch_size: int = 1  # questions that ``ask_batch`` answers together
    requests_at_once: int = 1  # threads that ask one ``VideoLM``, a question each

    def __post_init__(self) -> None:
        for name in ("batch_size", "requests_at_once"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.batch_size > 1 and self.requests_at_once > 1:
            raise UsageError(
                f"a batch of {self.batch_size} and {self.requests_at_once} requests at once are two measurements; "
                "measure one after the other"
            )

    @property
    def num_requests(self) -> int:
        """Answers of a turn."""
        return self.batch_size * self.requests_at_once

    @property
    def is_single(self) -> bool:
        """Whether a turn is one request alone."""
        return self.num_requests == 1

    def __str__(self) -> str:
        if self.requests_at_once > 1:
            return f"{self.requests_at_once} at once"
        return f"batch {self.batch_size}"


@dataclass(frozen=True, kw_only=True)
class RequestTimes:
    """When the parts of one answer were there; seconds from the call that names the file."""

    time_to_first_token_s: float
    end_to_end_s: float
    num_new_tokens: int
    inter_token_s: tuple[float, ...] = ()  # between neighbouring tokens; empty where they are not seen, as in a batch

    @property
    def time_per_output_token_s(self) -> float:
        """Mean time between two tokens."""
        return (self.end_to_end_s - self.time_to_first_token_s) / (self.num_new_tokens - 1)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Seconds of one turn, from the files to the last token of the last answer.

    A stage counts for all requests of a batch together; with requests at once it is the mean over the requests.
    """

    whole_chain_s: float  # wall-clock time of the turn
    file_decode_s: float
    preprocess_s: float
    video_encoder_s: float
    prefill_s: float  # yields the first new token
    steps_s: float  # all decoding steps
    num_steps: int
    prompt_tokens: int  # positions before the answer: video tokens, question, chat template
    requests: tuple[RequestTimes, ...]

    @property
    def per_token_s(self) -> float:
        """Mean of the sample's decoding steps."""
        return self.steps_s / self.num_steps

    @property
    def language_model_s(self) -> float:
        """The language model alone: prefill and decoding steps."""
        return self.prefill_s + self.steps_s

    @property
    def other_s(self) -> float:
        """Time outside the stages: tokenizer, cache, the choice of tokens, text, waiting for other requests."""
        stages_s = self.file_decode_s + self.preprocess_s + self.video_encoder_s + self.language_model_s
        request_s = sum(request.end_to_end_s for request in self.requests) / len(self.requests)
        return request_s - stages_s

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sample:
        """The sample that ``dataclasses.asdict`` gave, after it went through JSON."""
        requests = tuple(
            RequestTimes(**{**request, "inter_token_s": tuple(request["inter_token_s"])})
            for request in values["requests"]
        )
        return cls(**{**values, "requests": requests})

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a result: without the gaps between tokens, whose figures are the row's."""
        values = dataclasses.asdict(self)
        for request in values["requests"]:
            del request["inter_token_s"]
        return values
