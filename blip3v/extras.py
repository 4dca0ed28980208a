"""The optional packages: which extra of ``pyproject.toml`` installs which, and the command to install it.

A test compares the table with ``pyproject.toml``. It is written out here because help must not pay for reading the
metadata of installed packages, and because an editable install keeps the metadata of the day it was made.

The command names the place that blip3v itself was installed from, since its name alone is in no index, and the
interpreter that runs, since that need not be the one on the PATH.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EXTRAS", "Package", "extra_of", "pip_command", "pip_line", "reinstall_line"]

_NAME = "blip3v"
_CONSTRAINTS = "constraints.txt"  # in a checkout; it pins PyTorch


@dataclass(frozen=True)
class Package:
    """One optional package."""

    name: str  # its name in pip
    at_least: str  # oldest version that works
    module: str  # its name in ``import``


_TORCH = (Package("torch", "2.11", "torch"), Package("transformers", "5.17", "transformers"))
# What reads the graphs that an engine is built from.
_GRAPHS = (
    Package("onnx", "1.20", "onnx"),
    Package("onnx-ir", "1.1", "onnx_ir"),
    Package("filelock", "4.1", "filelock"),
)
_CUDA = Package("cuda-bindings", "12.8", "cuda")  # memory and streams of the GPU

# In the order in which a missing module is looked up: the first extra that installs it is the one to suggest.
EXTRAS: dict[str, tuple[Package, ...]] = {
    # 1.23.2 is the last one for Python 3.10.
    "cpu": (Package("onnxruntime", "1.31" if sys.version_info >= (3, 11) else "1.23.2", "onnxruntime"),),
    "cuda": (Package("onnxruntime-gpu", "1.31", "onnxruntime"),),
    "openvino": (Package("openvino", "2026.4", "openvino"),),
    "export": (
        *_TORCH,
        Package("accelerate", "1.10", "accelerate"),
        Package("onnx", "1.20", "onnx"),
        Package("onnxscript", "0.7", "onnxscript"),
        Package("onnx-ir", "1.1", "onnx_ir"),
        Package("filelock", "4.1", "filelock"),
    ),
    "tensorrt": (Package("tensorrt", "10.3", "tensorrt"), _CUDA, *_GRAPHS),
    "tensorrt-rtx": (
        Package("tensorrt-rtx-cu13-libs", "1.7", "tensorrt_rtx_libs"),
        Package("tensorrt-rtx-cu13-bindings", "1.7", "tensorrt_rtx_bindings"),
        _CUDA,
        *_GRAPHS,
    ),
    "train": (*_TORCH, Package("accelerate", "1.10", "accelerate")),
    "eval": (
        Package("matplotlib", "3.9", "matplotlib"),
        Package("sacrebleu", "2.6", "sacrebleu"),
        Package("rouge-score", "0.1.2", "rouge_score"),
    ),
    "lmms": (Package("lmms-eval", "0.7.3", "lmms_eval"), *_TORCH),
    "bench": (Package("psutil", "6", "psutil"),),
}


def extra_of(module: str, *, prefer: str = "") -> str | None:
    """Returns the extra that installs a module.

    Args:
        module: what could not be imported, for example ``torch.nn``.
        prefer: the extra to choose if several install it.

    Returns:
        The extra's name; None if no extra installs it.
    """
    top = module.partition(".")[0]
    holders = [extra for extra, packages in EXTRAS.items() if any(package.module == top for package in packages)]
    if prefer in holders:
        return prefer
    return holders[0] if holders else None


def pip_line(extra: str) -> str:
    """The command that adds an extra to the installed blip3v, for a shell in the current folder.

    It names what blip3v was installed from. If that is unknown or gone, it names the extra's packages instead.
    """
    try:
        source = _source(extra)
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError):  # see its docstring
        source = []
    return pip_command("install", *(source or [f"{package.name}>={package.at_least}" for package in EXTRAS[extra]]))


def pip_command(verb: str, *arguments: str) -> str:
    """A pip command for the interpreter that runs, for a shell in the current folder."""
    return " ".join(map(_quoted, [*_pip(verb), *arguments]))


def reinstall_line(package: str) -> str:
    """The command that replaces an installed package by its published wheel."""
    return pip_command("install", "--force-reinstall", "--only-binary", package, package)


def _pip(verb: str) -> list[str]:
    # Imported here because every command imports this module, and hardly any has something to install.
    from importlib.util import find_spec

    if not sys.executable:  # a host that embeds Python
        return ["python", "-m", "pip", verb]
    path = Path(os.path.abspath(sys.executable))
    active = shutil.which("pip")
    if sys.prefix != sys.base_prefix and active and Path(os.path.abspath(active)).parent == path.parent:
        return ["pip", verb]
    python = _from_here(path)
    python = python if os.sep in python else os.path.join(".", python)
    if find_spec("pip") is None and shutil.which("uv"):  # environments that uv creates have no pip
        return ["uv", "pip", verb, "--python", python]
    return [python, "-m", "pip", verb]


def _source(extra: str) -> list[str]:
    """The arguments of ``pip install``, from the record that installers leave next to a package's metadata.

    Returns:
        [] if the folder or file that it was installed from is gone, or cannot be given an extra.

    Raises:
        ImportError: blip3v is not installed (it is run from its sources).
        OSError, ValueError, KeyError, TypeError, AttributeError: the record is damaged.
    """
    from importlib.metadata import distribution  # as above
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    record = distribution(_NAME).read_text("direct_url.json")
    if record is None:
        return [f"{_NAME}[{extra}]"]  # from an index
    origin = json.loads(record)
    url, subdirectory = origin["url"], origin.get("subdirectory", "")
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = Path(url2pathname(parts.path))
        if not path.exists() or "vcs_info" in origin:  # older versions of pip take no git+file
            return []
        if "dir_info" in origin:
            return _from_folder(path / subdirectory, extra, editable=origin["dir_info"].get("editable", False))
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    fragment = f"#subdirectory={subdirectory}" if subdirectory else ""
    return [f"{_NAME}[{extra}] @ {url}{fragment}"]


def _from_folder(folder: Path, extra: str, *, editable: bool) -> list[str]:
    place = "." if _from_here(folder) == "." else str(folder)  # pip takes a bare name for a package
    constraints = folder / _CONSTRAINTS
    pinned = constraints.is_file() and any(package in _TORCH for package in EXTRAS[extra])
    return [
        *(["-c", _from_here(constraints)] if pinned else []),
        *(["-e"] if editable else []),
        f"{place}[{extra}]",
    ]


def _from_here(path: Path) -> str:
    """A path as one would type it: relative if it is in the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (OSError, ValueError):  # elsewhere, or the current folder is gone
        return str(path)


def _quoted(word: str) -> str:
    """A word of a command, in double quotes if the shell would not take it as it is."""
    quoted = shlex.quote(word)
    return quoted if quoted == word or set(word) & set('"$`\\!') else f'"{word}"'
