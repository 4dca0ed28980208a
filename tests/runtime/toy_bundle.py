"""A whole bundle around the toy graphs, written by the real writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from toy_graphs import Weights, write_decoder, write_video_encoder

from blip3v.bundle import layout
from blip3v.bundle.embeddings import write_embeddings
from blip3v.bundle.graph_io import decoder_io, video_encoder_io
from blip3v.bundle.manifest import GraphEntry, KVGeometry, Limits, Manifest, Source, WeightCount
from blip3v.bundle.precision import Precision
from blip3v.bundle.targets import DEFAULT_TARGET, Target, is_tensorrt
from blip3v.bundle.writer import BundleWriter
from blip3v.config import ModelConfig
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, train_tokenizer
from blip3v.video import PreprocessorConfig


def write_bundle(
    target: Path,
    config: ModelConfig,
    weights: Weights,
    *,
    precision: str = "fp32",
    random_init: bool = False,
    encoder_seed: int = 1,
    max_new_tokens: int = 24,
    graphs_for: Target = DEFAULT_TARGET,
    one_position: bool = False,
) -> Path:
    """Writes a bundle of the toy model and gives its folder.

    ``precision`` is a name, or one for each graph; ``graphs_for`` says which engines the graphs are written for; with
    ``one_position`` the decoder has the form of earlier versions.
    """
    specs = Precision.parse(precision)
    with BundleWriter(target) as writer:
        folder = writer.path
        config.save(folder / layout.CONFIG)
        GenerationConfig(system_prompt="Be brief.", max_new_tokens=max_new_tokens).save(folder / layout.GENERATION)
        PreprocessorConfig(image_size=config.vision.image_size).save(folder / layout.PREPROCESSOR)
        texts = ["the red ball moves left", "which way does the circle turn"]
        train_tokenizer(texts, vocab_size_base=config.text.num_base_tokens).save(str(folder / layout.TOKENIZER))
        (folder / layout.CHAT_TEMPLATE).write_text(RELEASED_TEMPLATE, "utf-8")
        (folder / layout.CARD).write_text("toy\n", "utf-8")
        write_embeddings(folder / layout.EMBEDDINGS, toy_table(config, specs.decoder.io))
        path = folder / layout.graph_file("decoder")
        write_decoder(path, config, weights, specs.decoder.io, graphs_for, one_position=one_position)
        path = folder / layout.graph_file("video_encoder")
        write_video_encoder(path, config, specs.video_encoder.io, encoder_seed, graphs_for)
        manifest = toy_manifest(folder, config, specs, graphs_for, random_init=random_init, one_position=one_position)
        return writer.publish(manifest)


def toy_table(config: ModelConfig, dtype: str = "float32") -> np.ndarray:
    """Random embeddings, one row for each token."""
    shape = (config.text.num_logits, config.text.hidden_size)
    return np.random.default_rng(5).normal(size=shape).astype(dtype)


def toy_manifest(
    folder: Path,
    config: ModelConfig,
    precision: Precision,
    target: Target,
    *,
    random_init: bool = True,
    one_position: bool = False,
) -> Manifest:
    """The manifest of a bundle whose graphs lie in ``folder``; each counts as one tensor of its file's size."""
    decoder = decoder_io(config, target, one_position=one_position)
    ios = {"video_encoder": video_encoder_io(config, target), "decoder": decoder}
    sizes = {name: (folder / layout.graph_file(name)).stat().st_size for name in ios}
    return Manifest(
        created_by={"toy": "1"},
        source=Source(name="toy", sha256={}, random_init=random_init, trained=False),
        model=config.name,
        encoder=config.temporal.encoder,
        num_frames=config.num_frames,
        num_video_tokens=config.num_video_tokens,
        precision=precision,
        target=target,
        opset=24 if is_tensorrt(target) else 23,
        graphs={name: GraphEntry.of(name, io, precision.graphs[name]) for name, io in ios.items()},
        kv=KVGeometry.of(config, precision.decoder),
        limits=Limits(max_context=config.text.max_context),
        weights={
            name: {precision.graphs[name].io: WeightCount(num_tensors=1, num_elements=size, size_bytes=size)}
            for name, size in sizes.items()
        },
        parity=None,
    )
