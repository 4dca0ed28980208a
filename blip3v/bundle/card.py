"""The model card: ``README.md`` of a bundle, generated from its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from blip3v.bundle.manifest import Manifest
from blip3v.units import format_count

__all__ = ["render_card"]

_CARD = """\
# {model} with {encoder}, {num_video_tokens} video tokens, {precision}

A BLIP-3-Video model as two ONNX graphs: it answers questions about a video, without PyTorch.
`manifest.json` holds the details and the hash of every file.

| | |
|---|---|
{rows}

## Run it

```
pip install ".[cpu]"    # in a clone of blip3v
blip3v verify PATH_TO_THIS_FOLDER
blip3v ask VIDEO "QUESTION" -m PATH_TO_THIS_FOLDER
```

```python
from blip3v.runtime import VideoLM

with VideoLM.open("PATH_TO_THIS_FOLDER") as model:
    print(model.ask("VIDEO", "QUESTION").text)
```

## Parity with PyTorch

{parity}

## Licence

The code that made this bundle is Apache-2.0. The weights keep the licence of the model folder they came from.
Salesforce's released BLIP-3-Video weights are CC-BY-NC-4.0 (no commercial use) and are not part of blip3v.
"""


def render_card(manifest: Manifest, precision: str) -> str:
    """Returns the card as Markdown.

    Args:
        manifest: the bundle's; ``files`` may still be empty.
        precision: the text that says how weights are stored, and in what precision the bundle's target computes.
    """
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in _facts(manifest, precision))
    return _CARD.format(
        model=manifest.model,
        encoder=manifest.encoder,
        num_video_tokens=manifest.num_video_tokens,
        precision=manifest.precision.name,
        rows=rows,
        parity=_parity(manifest),
    )


def _facts(manifest: Manifest, precision: str) -> Iterator[tuple[str, object]]:
    frames, tokens = format_count(manifest.num_frames, "frame"), format_count(manifest.num_video_tokens, "token")
    yield "video", f"{frames} become {tokens}"
    yield "weights", f"{manifest.source.name}: {_weights(manifest)}"
    yield "precision", precision
    yield "target", f"{manifest.target}, opset {manifest.opset}"
    yield "context", f"{manifest.limits.max_context} tokens: prompt, video and answer"
    yield "KV cache", f"{manifest.kv.bytes_per_token} bytes per token"
    yield "made by", ", ".join(f"{tool} {version}" for tool, version in manifest.created_by.items())


def _weights(manifest: Manifest) -> str:
    if manifest.source.random_init:
        return "random, for measuring speed and memory; answers are meaningless"
    return "trained" if manifest.source.trained else "not fully trained, for measuring speed and memory"


def _parity(manifest: Manifest) -> str:
    if manifest.parity is None and manifest.precision.is_quantized:
        return "Quantised: `blip3v inspect` shows what that does to the answers, if the export measured it."
    if manifest.parity is None:
        return "Not checked: the export skipped the comparison."
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in flatten(manifest.parity)]
    return "\n".join(["| | |", "|---|---|", *rows, "", "`reports/parity.json` holds every stage."])


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested objects, with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _cell(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
