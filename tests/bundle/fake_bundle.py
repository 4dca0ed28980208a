"""A bundle of a few kilobytes: real configs, tokenizer and embeddings, but graphs without nodes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from blip3v.bundle import (
    BundleWriter,
    GraphEntry,
    KVGeometry,
    Limits,
    Manifest,
    Precision,
    Source,
    WeightCount,
    decoder_io,
    render_card,
    video_encoder_io,
    write_embeddings,
)
from blip3v.config import ModelConfig, preset
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, train_tokenizer
from blip3v.video import PreprocessorConfig

CONFIG: ModelConfig = preset("tiny")
FP16 = Precision.parse("fp16")
FP16_TEXT = "stored fp16, computed as the command says"
# ModelProto{ir_version: 11, graph: {name: "g"}} in protobuf's wire format.
EMPTY_GRAPH = b"\x08\x0b\x3a\x03\x12\x01g"


def fake_manifest() -> Manifest:
    """A manifest without files."""
    ios = {"video_encoder": video_encoder_io(CONFIG), "decoder": decoder_io(CONFIG)}
    return Manifest(
        created_by={"blip3v": "0.1.0", "torch": "2.13.0"},
        source=Source(name="tiny", sha256={"model.safetensors": "0" * 64}, random_init=False, trained=True),
        model=CONFIG.name,
        encoder=CONFIG.temporal.encoder,
        num_frames=CONFIG.num_frames,
        num_video_tokens=CONFIG.temporal.num_video_tokens,
        precision=FP16,
        target="onnxruntime",
        opset=24,
        graphs={name: GraphEntry.of(name, io, FP16.graphs[name]) for name, io in ios.items()},
        kv=KVGeometry.of(CONFIG, FP16.decoder),
        limits=Limits(max_context=CONFIG.text.max_context),
        weights={"decoder": {"float16": WeightCount(num_tensors=2, num_elements=32, size_bytes=64)}},
        parity={"passed": True, "decoder": {"worst_relative_error": 1.5e-3, "tokens_equal": 32}},
    )


def embedding_table() -> npt.NDArray[np.float16]:
    """Row i holds i in every column."""
    return np.repeat(np.arange(CONFIG.text.num_logits, dtype=np.float16)[:, None], CONFIG.text.hidden_size, axis=1)


def write_files(folder: Path) -> None:
    """Writes all files of the bundle but the manifest."""
    CONFIG.save(folder / "config.json")
    GenerationConfig(system_prompt=None, max_new_tokens=16).save(folder / "generation.json")
    PreprocessorConfig(image_size=CONFIG.vision.image_size).save(folder / "preprocessor.json")
    (folder / "tokenizer.json").write_text(train_tokenizer([], vocab_size_base=608).to_str(), "utf-8")
    (folder / "chat_template.jinja").write_text(RELEASED_TEMPLATE, "utf-8")
    write_embeddings(folder / "embeddings.safetensors", embedding_table())
    (folder / "onnx" / "video_encoder.onnx").write_bytes(EMPTY_GRAPH)
    (folder / "onnx" / "decoder.onnx").write_bytes(EMPTY_GRAPH)
    (folder / "onnx" / "decoder.data").write_bytes(bytes(range(64)))
    (folder / "reports" / "parity.json").write_text("{}\n", "utf-8")
    (folder / "README.md").write_text(render_card(fake_manifest(), FP16_TEXT), "utf-8")


def write_fake_bundle(path: Path, *, force: bool = False, opset: int = 24) -> Path:
    """Writes the bundle; ``opset`` tells two of them apart."""
    with BundleWriter(path, force=force) as writer:
        write_files(writer.path)
        return writer.publish(dataclasses.replace(fake_manifest(), opset=opset))


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Replaces a file of the bundle and its hash in the manifest, as an attacker would."""
    (bundle / name).write_bytes(content)
    values = json.loads((bundle / "manifest.json").read_text("utf-8"))
    values["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(values), "utf-8")
