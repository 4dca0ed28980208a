"""The whole model asked in PyTorch, all at once: what a scan by layers is held to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from blip3v.calibration.data import AskedClip, AskedPrompt, ClipSet
from blip3v.model import Blip3Video
from blip3v.model.blip3_video import splice


def asked_of(samples: ClipSet) -> Iterator[tuple[AskedClip, AskedPrompt]]:
    for clip in samples.clips:
        for asked in clip.prompts:
            yield clip, asked


@torch.inference_mode()
def answer_logits(model: Blip3Video, clip: AskedClip, asked: AskedPrompt) -> Tensor:
    """Logits (N, V) at the positions that predict the answer's tokens and its end."""
    video_1MD = model.encode_video(torch.from_numpy(clip.load())[None])
    embeds_1LD = model.lang_model.embed(torch.tensor([[*asked.prompt.ids, *asked.answer_ids]]))
    spliced_1SD = splice(embeds_1LD, torch.tensor([asked.prompt.image_position]), video_1MD)
    logits_1SV: Tensor = model.lang_model(spliced_1SD)
    return logits_1SV[0, -1 - len(asked.answer_ids) :]
