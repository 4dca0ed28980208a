"""Which files a bundle may contain, by name. Anything else in the folder is an error."""

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
PARITY = "reports/parity.json"  # absent if the export skipped the parity check
GRAPHS = ("video_encoder", "decoder")
ENGINES = "engines"


def graph_file(name: str) -> str:
    """File name of the graph ``name``, relative to the bundle."""
    return f"onnx/{name}.onnx"


REQUIRED_FILES = (
    *(CONFIG, GENERATION, PREPROCESSOR, TOKENIZER, CHAT_TEMPLATE, EMBEDDINGS, CARD),
    *(graph_file(name) for name in GRAPHS),
)
# Derived from the bundle later: not hashed, may be absent, may be deleted.
DERIVED_FILES = ("reports/accuracy.json", "reports/bench.json")
FOLDERS = ("onnx", "reports", ENGINES)

# External data belongs to the graph whose name it starts with. Engines read nothing outside the graph's folder.
_EXTERNAL_DATA = re.compile(rf"onnx/(?:{'|'.join(GRAPHS)})\.(?:[A-Za-z0-9_.-]{{1,64}}\.)?data")


def graph_files(name: str, files: Iterable[str]) -> list[str]:
    """The ``files`` that make up the graph ``name``: its ONNX file, then its external data in order."""
    external = sorted(file for file in files if file.startswith(f"onnx/{name}.") and file != graph_file(name))
    return [graph_file(name), *external]


def is_hashed(name: str) -> bool:
    """Whether a manifest may list ``name``, a path with ``/`` relative to the bundle."""
    return name in REQUIRED_FILES or name == PARITY or _EXTERNAL_DATA.fullmatch(name) is not None


def is_derived(name: str) -> bool:
    """Whether ``name`` may be in a bundle without being listed."""
    return name in DERIVED_FILES or name.startswith(f"{ENGINES}/")
