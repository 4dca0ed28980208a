"""The video encoder as one graph: frames in, video tokens out, and the stages in between for the parity check.

Vision, resampler and temporal encoder are the reference's own modules; a recurrent encoder runs through torch's scan
operator, since a plain loop would fix the number of frames in the graph.
"""

# Shapes: B batch, F frames, P patches, L latents, M video tokens, D width.

from __future__ import annotations

from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from blip3v.config import ModelConfig
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.temporal import has_resampler
from blip3v.model.temporal.recurrence import Recurrence
from blip3v.model.vision import vision_features

__all__ = ["ScannedRecurrence", "VideoEncoderGraph", "stages_of"]


def stages_of(config: ModelConfig) -> tuple[str, ...]:
    """What ``VideoEncoderGraph`` returns after the video tokens, in order."""
    return ("vision", "resampler", "temporal") if has_resampler(config) else ("vision", "temporal")


class ScannedRecurrence(nn.Module):
    """A ``Recurrence`` whose loop over the frames is one scan: (B, F, L, D) to (B, M, D), any F.

    It computes in the dtype of its weights, ``encoder.*``, and returns the dtype of its input. The weights are an
    island in the precision's spec, since the CPU engine would repeat casts inside the body at every frame.

    Args:
        encoder: the reference; its weights are shared.
        scan: False runs the reference's plain loop, which PyTorch can inspect and ONNX cannot represent.
    """

    def __init__(self, encoder: Recurrence, *, scan: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.scan = scan

    def forward(self, x_BFLD: Tensor) -> Tensor:
        """Runs the frames one after another."""
        inside_BFLD = x_BFLD.to(self.encoder.initial_memory.dtype)
        tokens_BMD: Tensor = self._scanned(inside_BFLD) if self.scan else self.encoder(inside_BFLD)
        return tokens_BMD.to(x_BFLD.dtype)

    def _scanned(self, x_BFLD: Tensor) -> Tensor:
        memory, frames = self.encoder.start(x_BFLD)

        def step(memory: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
            memory, output = self.encoder.step(memory, frame)
            return memory.contiguous(), output

        # A scan accepts a memory only in the layout in which it returns one.
        memory, outputs = scan(step, memory.contiguous(), frames)
        return self.encoder.finish(memory, outputs)


class VideoEncoderGraph(nn.Module):
    """Frames (B, F, 3, side, side) to video tokens (B, M, language width), any B and F that the encoder admits.

    Args:
        model: the reference; its weights are shared, not copied.
        scan: whether a recurrent encoder runs as a scan; see ``ScannedRecurrence``.
    """

    def __init__(self, model: Blip3Video, *, scan: bool = True) -> None:
        super().__init__()
        self.vision_encoder = model.vision_encoder
        self.vision_tokenizer = model.vision_tokenizer
        temporal = model.vision_tokenizer.temporal_encoder
        self.temporal = ScannedRecurrence(temporal, scan=scan) if isinstance(temporal, Recurrence) else temporal

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Video tokens, then ``stages_of`` the model: (B, F, P, D), (B, F, L, D) with F as arranged, (B, M, D)."""
        patches_BFPD = vision_features(self.vision_encoder, frames)
        latents_BFLD = self.vision_tokenizer.resample(self.vision_tokenizer.arrange(patches_BFPD))
        tokens_BMD = self.temporal(latents_BFLD)
        video_tokens_BMD = self.vision_tokenizer.project(tokens_BMD).to(frames.dtype)
        resampled = (latents_BFLD,) if self.vision_tokenizer.resamples else ()
        return video_tokens_BMD, patches_BFPD, *resampled, tokens_BMD
