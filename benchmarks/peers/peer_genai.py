"""onnxruntime-genai: its model builder's graphs, with weights in blocks of 128, run by its own generator.

``form`` is ``int4`` or ``int8``, both in MatMulNBits at accuracy level 4 (inputs rounded to int8), with the head in 8
bits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Generated, run_tool, timed

__all__ = ["open_decoder", "prepare"]

_BLOCKS = ("block_size=128", "accuracy_level=4")
_ALGORITHMS = {"int4": "rtn_last", "int8": "rtn"}  # rounded to nearest; last: the head in 8 bits


def prepare(form: str, checkpoint: Path, folder: Path) -> None:
    """Builds the graph with the package's model builder."""
    build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint / "text")]
    build += ["-o", str(folder), "-p", form, "-e", "cpu", "-c", str(folder / "cache")]
    run_tool([*build, "--extra_options", *_BLOCKS, f"algo_config={_ALGORITHMS[form]}"])


def open_decoder(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> _Decoder:
    """Opens the built model."""
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    config.overlay(
        '{"model": {"decoder": {"session_options": {"intra_op_num_threads": %d}}}}' % threads  # noqa: UP031  # braces
    )
    return _Decoder(og.Model(config))


class _Decoder:
    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, ids: Sequence[int], num_steps: int) -> Generated:
        """Appends the prompt, then one token after the other."""
        import numpy as np
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        params.set_search_options(max_length=len(ids) + num_steps + 1, do_sample=False)
        generator = og.Generator(self._model, params)
        prompt = np.array([list(ids)], np.int32)

        def run(tokens: Any) -> Any:
            generator.append_tokens(tokens)
            return np.asarray(generator.get_logits()).reshape(-1, self._num_logits(generator))[-1]

        return timed(lambda: run(prompt), lambda: run(prompt[:, :1]), num_steps)

    @staticmethod
    def _num_logits(generator: Any) -> int:
        return int(generator.get_logits().shape[-1])
