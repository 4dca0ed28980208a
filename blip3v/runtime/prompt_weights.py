"""A second set of a decoder's weights, for prompts: int8 with a scale for each output, made from weights in blocks.

    BUNDLE/onnx/decoder.onnx -> BUNDLE/engines/onnxruntime-VERSION-prompts-int8-KEY/decoder.onnx, decoder.onnx.data, ...

``blip3v build`` makes it where it is asked to, packed as in ``packed_graphs.py``; the back end ``onnxruntime:cpu-int8``
alone opens it. Not here: making it (``export/prompt_weights.py``).
"""

from __future__ import annotations

from pathlib import Path

from blip3v.bundle.precision import GraphPrecision
from blip3v.errors import ArtifactMissingError
from blip3v.runtime.backends import GraphFile
from blip3v.runtime.packed_graphs import folder_of, packed_in

__all__ = ["find_prompt_weights", "has_blocks", "prompt_weights_folder", "require_prompt_weights"]

_DERIVED = "prompts-int8"


def has_blocks(precision: GraphPrecision) -> bool:
    """Whether a graph is a decoder with weights in blocks, of which int8 weights for prompts can be made."""
    return precision.cache is not None and precision.group_size is not None


def prompt_weights_folder(graph: GraphFile) -> Path | None:
    """Where the weights for prompts are, or would be; None: the graph is not one of a bundle, or can have none."""
    return folder_of(graph, _DERIVED) if has_blocks(graph.precision) else None


def find_prompt_weights(graph: GraphFile) -> Path | None:
    """The decoder with weights for prompts, for this machine and this version of ONNX Runtime; None: there is none.

    Raises:
        ArtifactError: its files are not those that were written.
    """
    folder = prompt_weights_folder(graph)
    return None if folder is None else packed_in(folder, graph.path.name)


def require_prompt_weights(graph: GraphFile) -> Path:
    """The same.

    Raises:
        ArtifactMissingError: there is none; the message says what makes it.
        ArtifactError: its files are not those that were written.
    """
    found = find_prompt_weights(graph)
    if found is None:
        bundle = "BUNDLE" if graph.engines is None else graph.engines.parent
        raise ArtifactMissingError(
            f"{bundle} has no int8 weights for prompts that were made on this machine with this ONNX Runtime",
            remedy=f"run `blip3v build {bundle}` with `library='onnxruntime'` and `prompt_weights='int8'`",
        )
    return found
