"""Greedy decoding with the PyTorch reference and the transformers library's own KV cache."""

# Shapes: R rows, L prompt tokens, M video tokens, D width, V logits.

from __future__ import annotations

import torch
from torch import Tensor

from blip3v.model.blip3_video import Blip3Video, splice

__all__ = ["greedy"]


@torch.inference_mode()
def greedy(
    model: Blip3Video,
    ids_RL: Tensor,
    image_position_R: Tensor,
    video_RMD: Tensor,
    *,
    max_new_tokens: int,
    stop_id: int | None,
) -> list[list[int]]:
    """Decodes greedily. All prompts of a call have the same length, so that no row needs padding.

    Args:
        model: in eval mode.
        ids_RL: prompts, with one ``<image>`` each.
        image_position_R: the index of ``<image>`` in each row.
        video_RMD: the video tokens of each row.
        max_new_tokens: the most tokens of an answer.
        stop_id: ends a row and is not part of it; None: every row gets ``max_new_tokens`` tokens.

    Returns:
        R lists of ids.
    """
    language = model.lang_model
    embeds = splice(language.embed(ids_RL), image_position_R, video_RMD)
    cache, new_ids = None, []
    for _ in range(max_new_tokens):
        out = language.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        id_R = language.lm_head(out.last_hidden_state[:, -1]).argmax(dim=-1)
        new_ids.append(id_R)
        if stop_id is not None and bool((torch.stack(new_ids) == stop_id).any(dim=0).all()):
            break
        embeds = language.embed(id_R[:, None])
    rows = torch.stack(new_ids, dim=1).tolist()
    return [row[: row.index(stop_id)] if stop_id in row else row for row in rows]
