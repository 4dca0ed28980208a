"""llama.cpp through llama-cpp-python, which pip builds for this processor.

``form`` is ``q4_0`` or ``q8_0``; the head is in q8_0 and the embedding in fp16 in both. The GGUF file is written here:
llama.cpp's converter is not in the package.

A build for this processor may end by signal 11 in prefill where a virtual machine shows AMX that cannot be used; then
set CMAKE_ARGS to another build (``-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON``), and delete
FOLDER/envs/llama_cpp before the next run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Generated, timed

__all__ = ["open_decoder", "prepare"]

_MAX_TOKENS = 4096
# Of a layer: the library's name and GGUF's.
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def prepare(form: str, checkpoint: Path, folder: Path) -> None:
    """Writes ``folder/model.gguf``."""
    import gguf
    import numpy as np
    from safetensors import safe_open

    config = json.loads((checkpoint / "text/config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(folder / "model.gguf", "phi3", use_temp_file=True)
    _write_header(writer, config)
    with safe_open(checkpoint / "text/model.safetensors", framework="numpy") as file:
        for name, stored, kind in _tensors(config["num_hidden_layers"], form):
            values = file.get_tensor(name).astype(np.float32)
            dtype = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(stored, gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def open_decoder(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> _Decoder:
    """Opens the file. Flash attention is off, as by default: on CPUs it is slower."""
    import llama_cpp

    return _Decoder(
        llama_cpp.Llama(
            str(folder / "model.gguf"),
            n_ctx=_MAX_TOKENS,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
    )


def _write_header(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    if config["sliding_window"] is not None:
        writer.add_sliding_window(config["sliding_window"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")  # prompts are ids


def _tensors(num_layers: int, form: str) -> Iterator[tuple[str, str, str]]:
    """(stored name, GGUF's name, GGUF's type)."""
    yield "model.embed_tokens.weight", "token_embd.weight", "F16"
    for number in range(num_layers):
        for name, short in _LAYER.items():
            kind = "F32" if "norm" in name else form.upper()
            yield f"model.layers.{number}.{name}.weight", f"blk.{number}.{short}.weight", kind
    yield "model.norm.weight", "output_norm.weight", "F32"
    yield "lm_head.weight", "output.weight", "Q8_0"


class _Decoder:
    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, ids: Sequence[int], num_steps: int) -> Generated:
        """Evaluates the prompt in an empty context, then one token after the other."""
        import llama_cpp

        model, prompt = self._model, list(ids)
        model.reset()

        def run(tokens: list[int]) -> list[float]:
            model.eval(tokens)
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            return list(logits[: model.n_vocab()])

        return timed(lambda: run(prompt), lambda: model.eval(prompt[:1]), num_steps)
