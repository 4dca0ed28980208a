"""Runs everything that needs a CUDA device: parity, training speed and generation speed.

    python scripts/gpu_check.py --output benchmarks/results/gpu.json
    python scripts/gpu_check.py --only training --seconds 480 --output benchmarks/results/gpu.json
    python scripts/gpu_check.py --device cpu --smallest --output /tmp/gpu.json

The weights are random. Every measurement is written as soon as it is made; running the same command again continues
from what the file holds. blip3v need not be installed: the checkout that contains this file is measured.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_NEEDED = {"torch": "2.11", "transformers": "5.17", "safetensors": "0.5", "click": "8.1.8", "rich": "13.9"}


def main() -> None:
    """Checks that the required packages are installed and starts the command."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from blip3v.extras import pip_command  # of this checkout

    missing = [f"{name}>={version}" for name, version in _NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        line = pip_command("install", *missing)
        raise SystemExit(f"this Python lacks packages that the GPU check needs; run: {line}")
    from scripts.gpu.command import gpu_check  # after the check above: it imports torch

    gpu_check()


if __name__ == "__main__":
    main()
