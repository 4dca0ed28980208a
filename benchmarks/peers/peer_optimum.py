"""optimum's ONNX export (optimum-onnx), run by its class over ONNX Runtime in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Generated, timed

__all__ = ["open_decoder", "prepare"]


def prepare(form: str, checkpoint: Path, folder: Path) -> None:
    """Exports the decoder with its cache as inputs and outputs."""
    from optimum.onnxruntime import ORTModelForCausalLM

    ORTModelForCausalLM.from_pretrained(checkpoint / "text", export=True, use_cache=True).save_pretrained(folder)


def open_decoder(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> _Decoder:
    """Opens the exported graph."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return _Decoder(ORTModelForCausalLM.from_pretrained(folder, use_cache=True, session_options=options))


class _Decoder:
    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, ids: Sequence[int], num_steps: int) -> Generated:
        """Calls the class itself, without the loop of ``generate``, which would add to its time."""
        import torch

        prompt = torch.tensor([list(ids)])
        state: dict[str, Any] = {"length": 0, "cache": None}

        def run(tokens: Any) -> Any:
            state["length"] += tokens.shape[1]
            positions = torch.arange(state["length"] - tokens.shape[1], state["length"])[None]
            out = self._model(
                input_ids=tokens,
                attention_mask=torch.ones(1, state["length"], dtype=torch.int64),
                position_ids=positions,
                past_key_values=state["cache"],
                use_cache=True,
            )
            state["cache"] = out.past_key_values
            return out.logits[0, -1]

        return timed(lambda: run(prompt), lambda: run(prompt[:, :1]), num_steps)
