"""The video encoder graph: pixels to video tokens. B batch, F frames, M video tokens, D width, S side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import BackendError
from blip3v.runtime.ort import Graph, ort_errors

__all__ = ["VideoEncoder"]


class VideoEncoder:
    """Turns the pixels of a clip into its tokens. Several threads may use it at once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def encode(self, pixels_BF3SS: NDArray[np.float32]) -> NDArray[np.float16] | NDArray[np.float32]:
        """Video tokens (B,M,D) in the graph's dtype.

        Args:
            pixels_BF3SS: (B,F,3,S,S) in [-1, 1].

        Raises:
            BackendError: the graph failed, or its tokens are not finite.
        """
        pixels = np.ascontiguousarray(pixels_BF3SS, self._graph.compute)
        with ort_errors("running the video encoder"):
            tokens_BMD: NDArray[np.float32] = self._graph.session.run(["video_tokens"], {"frames": pixels})[0]
        if not np.isfinite(tokens_BMD).all():
            raise BackendError(
                "the video encoder gave tokens that are not finite; its weights or its precision are broken: "
                "run `blip3v verify` on the bundle, or export it in fp32"
            )
        return tokens_BMD
