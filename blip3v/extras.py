"""The optional packages: which extra of ``pyproject.toml`` installs which, and the command to install it.

A test compares the table with ``pyproject.toml``. It is written out here because help must not pay for reading the
metadata of installed packages, and because an editable install keeps the metadata of the day it was made.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EXTRAS", "Package", "extra_of", "pip_line"]


@dataclass(frozen=True)
class Package:
    """One optional package."""

    name: str  # its name in pip
    at_least: str  # oldest version that works
    module: str  # its name in ``import``


_TORCH = (Package("torch", "2.11", "torch"), Package("transformers", "5.17", "transformers"))

# In the order in which a missing module is looked up: the first extra that installs it is the one to suggest.
EXTRAS: dict[str, tuple[Package, ...]] = {
    "cpu": (Package("onnxruntime", "1.31", "onnxruntime"),),
    "cuda": (Package("onnxruntime-gpu", "1.31", "onnxruntime"),),
    "openvino": (Package("openvino", "2026.4", "openvino"),),
    "export": (
        *_TORCH,
        Package("accelerate", "1.10", "accelerate"),
        Package("onnx", "1.20", "onnx"),
        Package("onnxscript", "0.7", "onnxscript"),
        Package("onnx-ir", "1.1", "onnx_ir"),
        Package("filelock", "4.2", "filelock"),
    ),
    "train": (*_TORCH, Package("accelerate", "1.10", "accelerate")),
    "eval": (Package("matplotlib", "3.9", "matplotlib"),),
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
    """The command that installs an extra."""
    return f'pip install "blip3v[{extra}]"'
