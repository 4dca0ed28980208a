"""blip3v itself: bundles exported from the checkpoint, each graph opened by one of our back ends.

``form`` is the precision of the export, ``engine`` a back end. A bundle in int4 also gets int8 weights for prompts. The
tower is the whole video encoder of a bundle with one resampler block and the mean of the frames behind SigLIP, the
least that a bundle can have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.protocol import Generated, timed

if TYPE_CHECKING:
    from torch import Tensor

    from blip3v.config import ModelConfig

__all__ = ["open_decoder", "open_tower", "prepare"]


def prepare(form: str, checkpoint: Path, folder: Path) -> None:
    """Exports ``folder/bundle`` with the weights of ``checkpoint``. Nothing is compared: the weights are random.

    A bundle that was prepared before there were weights for prompts gets them by
    ``blip3v build FOLDER/prepared/ours-int4/bundle --library onnxruntime --prompt-weights int8``.
    """
    from blip3v.bundle import Precision
    from blip3v.config import ModelConfig
    from blip3v.export.packed_graphs import build_prompt_weights
    from blip3v.export.pipeline import export_bundle
    from blip3v.export.quantization import QuantizationOptions
    from blip3v.export.source import random_source

    config = ModelConfig.load(checkpoint / "model.json")
    source = dataclasses.replace(random_source(config), weights=_weights(checkpoint, config))
    precision = Precision.parse(form)
    options = QuantizationOptions.for_speed_alone() if precision.is_quantized else None
    export_bundle(source, folder / "bundle", precision=precision, quantization=options, check=False, force=True)
    if form == "int4":
        build_prompt_weights(folder / "bundle")


def open_decoder(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> _Decoder:
    """Opens the decoder's graph and the embedding table."""
    return _Decoder(engine, folder / "bundle", threads)


def open_tower(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> _Tower:
    """Opens the video encoder's graph."""
    return _Tower(engine, folder / "bundle", threads)


class _Decoder:
    def __init__(self, engine: str, path: Path, threads: int) -> None:
        from blip3v.bundle import layout
        from blip3v.bundle.embeddings import open_embeddings
        from blip3v.bundle.reader import open_bundle
        from blip3v.runtime.backends import get_backend
        from blip3v.runtime.opening import graph_files

        bundle = open_bundle(path)
        self._table_VD = open_embeddings(path / layout.EMBEDDINGS)
        self._decoder = get_backend(engine).open_decoder(
            graph_files(bundle)["decoder"], bundle.config.text, threads=threads
        )

    def generate(self, ids: Sequence[int], num_steps: int) -> Generated:
        """Reads the prompt's embeddings, then steps over its ids again."""
        from blip3v.runtime.cancellation import Deadline

        session = self._decoder.session(1, len(ids) + num_steps)

        def prefill() -> Any:
            return session.prefill([self._rows(ids)], Deadline(None, None))[0]

        try:
            return timed(prefill, lambda: session.step(self._rows(ids[:1])), num_steps)
        finally:
            session.close()

    def _rows(self, ids: Sequence[int]) -> Any:
        return self._table_VD[list(ids)].astype(self._decoder.dtype)


class _Tower:
    def __init__(self, engine: str, path: Path, threads: int) -> None:
        from blip3v.bundle.reader import open_bundle
        from blip3v.runtime.backends import get_backend
        from blip3v.runtime.opening import graph_files

        graph = graph_files(open_bundle(path))["video_encoder"]
        self._encoder = get_backend(engine).open_video_encoder(graph, threads=threads)

    def encode(self, frames_F3SS: Any) -> None:
        """Encodes the frames as one clip."""
        from blip3v.runtime.cancellation import Deadline

        self._encoder.run(frames_F3SS[None], Deadline(None, None))


def _weights(checkpoint: Path, config: ModelConfig) -> Mapping[str, Tensor]:
    """The checkpoint's tensors by our names; what only we have is random, but for the head's bias, which is zero."""
    import torch

    from blip3v.model.weight_file import opened
    from blip3v.model.weights import RandomWeights

    random = RandomWeights(config)
    base = config.text.num_base_tokens

    class Weights(Mapping[str, "Tensor"]):
        def __getitem__(self, name: str) -> Tensor:
            found = _place(checkpoint, name)
            if name.startswith("lang_model.") and name.endswith("bias"):
                return torch.zeros(random[name].shape)
            if found is None:
                return random[name]
            with opened(found[0]) as file:
                tensor: Tensor = file.get_tensor(found[1])
            return tensor[base:] if "additional" in name else tensor

        def __iter__(self) -> Iterator[str]:
            return iter(random)

        def __len__(self) -> int:
            return len(random)

    return Weights()


def _place(checkpoint: Path, name: str) -> tuple[Path, str] | None:
    """The file and the name there of one of our tensors."""
    from benchmarks.peers.checkpoint import stored_name

    stored = stored_name(name)
    return None if stored is None else (checkpoint / stored[0] / "model.safetensors", stored[1])
