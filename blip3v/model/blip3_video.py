"""BLIP-3-Video: vision encoder, resampler with temporal encoder, and language model, joined at ``<image>``."""

# Shapes: B clips, R rows (one prompt each, several may share a clip), T frames, P patches, L text tokens,
# M video tokens, S = L + M - 1 spliced tokens, D language width, V logits.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.model.language import LanguageModel
from blip3v.model.packing import positions_and_mask
from blip3v.model.resampler import PerceiverResampler
from blip3v.model.vision import build_vision, vision_features

__all__ = ["IGNORE_INDEX", "Blip3Video", "splice"]

IGNORE_INDEX = -100  # label of positions that the loss ignores


class Blip3Video(nn.Module):
    """The PyTorch reference. State-dict names are the released ones without their ``vlm.`` prefix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder = build_vision(config.vision)
        self.vision_tokenizer = PerceiverResampler(config)
        self.lang_model = LanguageModel(config.text)

    def features(self, frames_BTCHW: Tensor) -> Tensor:
        """Computes patch tokens: pixels in [-1, 1], (B, T, 3, side, side), to (B, T, P, vision width)."""
        return vision_features(self.vision_encoder, frames_BTCHW)

    def encode_video(self, frames_BTCHW: Tensor) -> Tensor:
        """Computes video tokens: pixels in [-1, 1], (B, T, 3, side, side), to (B, M, D)."""
        video_BMD: Tensor = self.vision_tokenizer(self.features(frames_BTCHW))
        return video_BMD

    def forward(self, ids_RL: Tensor, image_position_R: Tensor, video_RMD: Tensor) -> Tensor:
        """Returns the logits of every spliced position.

        Args:
            ids_RL: prompt and answer, right-padded, with one ``<image>`` per row.
            image_position_R: the index of ``<image>`` in each row.
            video_RMD: the video tokens of each row.

        Returns:
            (R, S, V).
        """
        logits_RSV: Tensor = self.lang_model(splice(self.lang_model.embed(ids_RL), image_position_R, video_RMD))
        return logits_RSV

    def loss(
        self,
        ids_RL: Tensor,
        labels_RL: Tensor,
        image_position_R: Tensor,
        video_RMD: Tensor,
        question_RL: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the cross-entropy summed over the labelled positions, and their count.

        Args:
            ids_RL: prompt and answer, right-padded, with one ``<image>`` per row.
            labels_RL: the id at each position that the model must predict, else ``IGNORE_INDEX``.
            image_position_R: the index of ``<image>`` in each row.
            video_RMD: the video tokens of each row.
            question_RL: for rows of several questions (``packing.py``): 0 up to ``<image>``, then 1, 2, ...

        Returns:
            Two scalars: summed loss in nats (fp32), number of labelled positions (int64).
        """
        embeds_RSD = splice(self.lang_model.embed(ids_RL), image_position_R, video_RMD)
        labels_RS = _splice_constant(labels_RL, image_position_R, video_RMD, IGNORE_INDEX)
        positions_RS = mask = None
        if question_RL is not None:
            question_RS = _splice_constant(question_RL, image_position_R, video_RMD, 0)
            positions_RS, mask = positions_and_mask(question_RS, window=self.config.text.sliding_window)
        hidden_RSD = self.lang_model.hidden(embeds_RSD, positions_RS, mask)
        labelled = labels_RS[:, 1:] != IGNORE_INDEX
        logits_XV = self.lang_model.lm_head(hidden_RSD[:, :-1][labelled])
        targets_X = labels_RS[:, 1:][labelled]
        return F.cross_entropy(logits_XV.float(), targets_X, reduction="sum"), labelled.sum()


def _splice_constant(values_RL: Tensor, position_R: Tensor, video_RMD: Tensor, constant: int) -> Tensor:
    """Splices values of text positions, with ``constant`` at the video tokens: (R, L) to (R, S)."""
    constants_RM1 = values_RL.new_full((*video_RMD.shape[:2], 1), constant)
    return splice(values_RL[..., None], position_R, constants_RM1)[..., 0]


def splice(text_RLD: Tensor, position_R: Tensor, video_RMD: Tensor) -> Tensor:
    """Replaces the one ``<image>`` vector of each row with the row's M video vectors.

    Args:
        text_RLD: (R, L, D).
        position_R: int64 in [0, L).
        video_RMD: (R, M, D).

    Returns:
        (R, L + M - 1, D), in the dtype of ``text_RLD``.
    """
    num_text, num_video, width = text_RLD.shape[1], video_RMD.shape[1], text_RLD.shape[2]
    joined = torch.cat((text_RLD, video_RMD.to(text_RLD.dtype)), dim=1)
    at_S = torch.arange(num_text + num_video - 1, device=text_RLD.device)
    start_R1 = position_R[:, None]
    in_video = (at_S >= start_R1) & (at_S < start_R1 + num_video)
    after = torch.where(at_S < start_R1, at_S, at_S - num_video + 1)
    source_RS = torch.where(in_video, num_text + at_S - start_R1, after)
    return joined.gather(1, source_RS[..., None].expand(-1, -1, width))
