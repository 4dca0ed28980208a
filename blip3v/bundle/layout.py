"""Which files a bundle may contain, by name. Anything else in the folder is an error.

What git, file managers and the hub's downloader leave in every folder (the strangers) is passed over, by name. It is
not part of the bundle, and engines do not get to see it (``hub_links.real_files``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "ACCURACY",
    "DERIVED_FILES",
    "ENGINES",
    "FOLDERS",
    "GIT",
    "MANIFEST",
    "PARITY",
    "REQUIRED_FILES",
    "TUNING",
    "graph_file",
    "graph_files",
    "is_derived",
    "is_hashed",
    "is_stranger",
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
ACCURACY = "reports/accuracy.json"
GRAPHS = ("video_encoder", "decoder")
ENGINES = "engines"
TUNING = "tuning"


def graph_file(name: str) -> str:
    """File name of the graph ``name``, relative to the bundle."""
    return f"onnx/{name}.onnx"


REQUIRED_FILES = (
    *(CONFIG, GENERATION, PREPROCESSOR, TOKENIZER, CHAT_TEMPLATE, EMBEDDINGS, CARD),
    *(graph_file(name) for name in GRAPHS),
)
# Derived from the bundle later: not hashed, may be absent, may be deleted.
DERIVED_FILES = (ACCURACY, "reports/bench.json")
HUB_LEFTOVERS = ".cache/huggingface"  # of a download to a folder, instead of the hub's cache
FOLDERS = ("onnx", "reports", ENGINES, TUNING, ".cache")

GIT = (".git", ".gitattributes", ".gitignore")
# Of the file managers of macOS, Windows and KDE. The Finder also writes ``._NAME`` next to each file on foreign disks.
_OF_FILE_MANAGERS = (".DS_Store", "Thumbs.db", "desktop.ini", ".directory")
_APPLE_DOUBLE = "._"
# Of a derived file that is being written, or was when its process ended: ``publishing.write_file``.
_TUNING_FILE = r"[a-z0-9][a-z0-9._-]{0,95}\.json"
_PARTIAL = re.compile(rf"(?:reports/\.(?:accuracy|bench)\.json|{TUNING}/\.{_TUNING_FILE})\.[0-9a-f]{{8}}\.partial")

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
    is_tuning = re.fullmatch(f"{TUNING}/{_TUNING_FILE}", name) is not None
    return name in DERIVED_FILES or name.startswith(f"{ENGINES}/") or is_tuning


def is_stranger(name: str, *, is_folder: bool) -> bool:
    """Whether ``name``, a path with ``/`` relative to the bundle, is passed over.

    ``.git`` is a folder, or a file in a submodule; everything else is a file, but for the leftovers of the hub.
    """
    if is_folder:
        return name in (".git", HUB_LEFTOVERS)
    last = name.rpartition("/")[2]
    is_left_over = last in (*GIT[1:], *_OF_FILE_MANAGERS) or last.startswith(_APPLE_DOUBLE)
    return name == ".git" or is_left_over or _PARTIAL.fullmatch(name) is not None
