"""The transformers library on PyTorch: eager in fp32 and bf16, and compiled in fp32.

``engine`` is ``fp32``, ``bf16`` or ``compiled``. Attention is the library's default, PyTorch's own kernel; nothing is
prepared. Compiled decoding uses the library's static cache, without which each length would be compiled anew; its
prefill is eager.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Generated, timed

__all__ = ["open_decoder", "open_tower", "prepare"]


def prepare(form: str, checkpoint: Path, folder: Path) -> None:
    """Does nothing: the checkpoint is read as it is."""


def open_decoder(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> _Decoder:
    """Loads Phi-3."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint / "text", dtype=_dtype(engine, threads)).eval()
    return _Decoder(model, compiled=engine == "compiled")


def open_tower(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> _Tower:
    """Loads SigLIP's vision tower."""
    import torch
    from transformers import SiglipVisionModel

    model = SiglipVisionModel.from_pretrained(checkpoint / "vision", dtype=_dtype(engine, threads)).eval()
    return _Tower(torch.compile(model) if engine == "compiled" else model, model.dtype)


def _dtype(engine: str, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return torch.bfloat16 if engine == "bf16" else torch.float32


class _Decoder:
    def __init__(self, model: Any, *, compiled: bool) -> None:
        import torch

        self._model, self._compiled = model, compiled
        self._step = torch.compile(model) if compiled else model

    def generate(self, ids: Sequence[int], num_steps: int) -> Generated:
        """Calls the model itself, without the loop of ``generate``, which would add to its time."""
        import torch

        cache = self._new_cache(len(ids) + num_steps)
        prompt = torch.tensor([list(ids)])
        state = {"length": 0}

        def run(model: Any, tokens: Any) -> Any:
            positions = torch.arange(state["length"], state["length"] + tokens.shape[1])[None]
            state["length"] += tokens.shape[1]
            out = model(
                input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            return out.logits[0, -1]

        return timed(lambda: run(self._model, prompt), lambda: run(self._step, prompt[:, :1]), num_steps)

    def _new_cache(self, num_tokens: int) -> Any:
        from transformers import DynamicCache, StaticCache

        if self._compiled:
            # One length for all prompts of a similar size, so that few are compiled.
            return StaticCache(config=self._model.config, max_cache_len=-(-num_tokens // 256) * 256)
        return DynamicCache(config=self._model.config)


class _Tower:
    def __init__(self, model: Any, dtype: Any) -> None:
        self._model, self._dtype = model, dtype

    def encode(self, frames_F3SS: Any) -> None:
        """Encodes one frame after the other: a batch is no faster on a CPU, and takes more memory."""
        import torch

        for frame in torch.from_numpy(frames_F3SS).to(self._dtype):
            self._model(pixel_values=frame[None])
