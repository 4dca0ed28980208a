"""TensorRT engines of a bundle, and what the engine inspector says of their layers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3v.bench.child import child_environment
from blip3v.errors import BackendError, ProviderError, UsageError
from blip3v.export.engine_report import layers_file
from blip3v.python_arguments import code_arguments

__all__ = ["build", "count_layers"]

_DTYPE = re.compile(r"\b(FP32|FP16|BF16|FP8|FP4|INT64|INT32|INT8|INT4|BOOL|Float|Half|BFloat16)\b", re.IGNORECASE)
_NAMES = {"float": "FP32", "half": "FP16", "bfloat16": "BF16"}


def build(bundle: Path) -> dict[str, Any]:
    """Builds the engines of a bundle in a process of its own, or finds them there.

    Returns:
        Seconds, bytes, the library, and how many layers of each graph compute in what, as the engine inspector says.

    Raises:
        ProviderError: the library refuses to: it is not installed, or does not build for this GPU.
        BackendError: it fails. Both are in the library's own words.
    """
    code = "from blip3v.cli import main; main()"
    command = [sys.executable, *code_arguments(code, "build", str(bundle), "--json", "--quiet")]
    ran = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or [f"ended with code {ran.returncode}"]
        refused = ran.returncode in (UsageError.exit_code, ProviderError.exit_code)
        raise (ProviderError if refused else BackendError)(lines[-1].removeprefix("error: "))
    made = json.loads(ran.stdout)
    graphs = made["engines"].pop("graphs")
    return {
        "build_s": made["seconds"],
        "library": f"{made['engines']['library']} {made['engines']['library_version']}",
        "compute_capabilities": made["engines"]["compute_capabilities"],
        "graphs": {name: {key: graph[key] for key in ("build_s", "size_bytes")} for name, graph in graphs.items()},
        "layers": {name: _inspected(Path(graph["file"]), name) for name, graph in graphs.items()},
        "unreadable": made["unreadable"],
    }


def _inspected(engine: Path, graph: str) -> dict[str, int] | None:
    report = engine.with_name(layers_file(graph))
    return count_layers(json.loads(report.read_text("utf-8"))) if report.is_file() else None


def count_layers(report: Mapping[str, Any]) -> dict[str, int]:
    """How many layers of an engine write what, from the inspector's JSON: ``{"FP16": 120, "INT8": 96}``.

    A layer that says no dtype counts as ``not told``.
    """
    counts = Counter(map(_layer_dtype, report.get("Layers", ())))
    return dict(counts.most_common())


def _layer_dtype(layer: Any) -> str:
    outputs = layer.get("Outputs") or () if isinstance(layer, Mapping) else ()
    for output in outputs:
        text = " ".join(str(value) for key, value in output.items() if "format" in key.lower() or "type" in key.lower())
        found = _DTYPE.search(text)
        if found is not None:
            return _NAMES.get(found[1].lower(), found[1].upper())
    return "not told"
