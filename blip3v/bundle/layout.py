"""Which files a bundle may hold, by name. Everything else in the folder is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "DERIVED_FILES",
    "ENGINES",
    "FOLDERS",
    "MANIFEST",
    "PARITY",
    "REQUIRED_FILES",
    "graph_file",
    "graph_files",
    "is_derived",
    "is_hashed",
]

MANIFEST = "manifest.json"
CONFIG = "config.json"
GENERATION = "generation.json"
PREPROCESSOR = "preprocessor.json"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
EMBEDDINGS = "embeddings.safetensors"
CARD = "README.md"
PARITY = "reports/parity.json"  # absent where the export was told not to check
GRAPHS = ("video_encoder", "decoder")
ENGINES = "engines"


def graph_file(name: str) -> str:
    """Name of the graph ``name`` inside a bundle."""
    return f"onnx/{name}.onnx"


REQUIRED_FILES = (
    *(CONFIG, GENERATION, PREPROCESSOR, TOKENIZER, CHAT_TEMPLATE, EMBEDDINGS, CARD),
    *(graph_file(name) for name in GRAPHS),
)
# Made from the bundle afterwards: not hashed, may be absent, may be deleted.
DERIVED_FILES = ("reports/accuracy.json", "reports/bench.json")
FOLDERS = ("onnx", "reports", ENGINES)

# External data belongs to the graph that its name begins with. The engines read nothing outside the graph's folder.
_EXTERNAL_DATA = re.compile(rf"onnx/(?:{'|'.join(GRAPHS)})\.(?:[A-Za-z0-9_.-]{{1,64}}\.)?data")


def graph_files(name: str, files: Iterable[str]) -> list[str]:
    """Those of ``files`` that the graph ``name`` is made of: its ONNX file, then its external data in order."""
    external = sorted(file for file in files if file.startswith(f"onnx/{name}.") and file != graph_file(name))
    return [graph_file(name), *external]


def is_hashed(name: str) -> bool:
    """Whether a manifest may list ``name``, a path with ``/`` relative to the bundle."""
    return name in REQUIRED_FILES or name == PARITY or _EXTERNAL_DATA.fullmatch(name) is not None


def is_derived(name: str) -> bool:
    """Whether ``name`` may stand in a bundle without being listed."""
    return name in DERIVED_FILES or name.startswith(f"{ENGINES}/")
