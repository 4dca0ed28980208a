"""Latency and throughput of requests, under the names that vLLM and NVIDIA AIPerf use.

Definitions: `vllm bench serve` (``vllm/benchmarks/serve.py``) and "AIPerf Metrics Reference"
(https://docs.nvidia.com/aiperf/reference/ai-perf-metrics-reference). Both measure a server from outside; here a request
begins when the runtime is given the file and the question, and there is no network. The two differ in one word: what
AIPerf calls inter token latency is vLLM's time per output token, and its inter chunk latency is vLLM's inter-token
latency. Here the words are vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blip3v.bench.sample import Sample
from blip3v.bench.statistics import Statistics

__all__ = ["LATENCIES", "Metrics"]

# Field of ``Metrics`` -> its name for people.
LATENCIES = {
    "time_to_first_token_s": "TTFT",
    "time_per_output_token_s": "TPOT",
    "inter_token_latency_s": "ITL",
    "end_to_end_latency_s": "E2EL",
}


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Of all requests of all measured turns; seconds, and rates per second of the turns' wall-clock time."""

    time_to_first_token_s: Statistics  # from the request to its first token: decoding, video encoder and prefill
    time_per_output_token_s: Statistics  # (end-to-end latency - time to first token) / (tokens - 1) of each request
    inter_token_latency_s: Statistics | None  # every gap between two neighbouring tokens; None: not seen in a batch
    end_to_end_latency_s: Statistics  # from the request to its last token
    request_throughput: float  # requests per second
    output_token_throughput: float  # new tokens per second

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Metrics:
        """The metrics of at least one turn, whose answers have at least two tokens each."""
        requests = [request for sample in samples for request in sample.requests]
        gaps_s = [gap_s for request in requests for gap_s in request.inter_token_s]
        duration_s = sum(sample.whole_chain_s for sample in samples)
        return cls(
            time_to_first_token_s=Statistics.of([request.time_to_first_token_s for request in requests]),
            time_per_output_token_s=Statistics.of([request.time_per_output_token_s for request in requests]),
            inter_token_latency_s=Statistics.of(gaps_s) if gaps_s else None,
            end_to_end_latency_s=Statistics.of([request.end_to_end_s for request in requests]),
            request_throughput=len(requests) / duration_s,
            output_token_throughput=sum(request.num_new_tokens for request in requests) / duration_s,
        )
