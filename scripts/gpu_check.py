"""Runs everything that needs a CUDA device: parity, speed of training, loading and generation, the runtime's back ends.

    python scripts/gpu_check.py --output benchmarks/results/gpu.json
    python scripts/gpu_check.py --only training --seconds 480 --output benchmarks/results/gpu.json
    python scripts/gpu_check.py --device cpu --smallest --output /tmp/gpu.json
    python scripts/plot_gpu.py benchmarks/results/gpu.json docs/gpu.png

The weights are random. Every measurement is written as soon as it is made; running the same command again continues
from what the file holds. blip3v need not be installed: the checkout that contains this file is measured.

The stage runtime exports bundles to --folder, in minutes each at full size, and builds engines of them; it measures
the back ends that are installed and says why the others do not run. A machine without a network gets them in parts. On
one that has a network, for Python 3.12 on x86-64:

    python -m pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --dest wheels onnxruntime-gpu==1.31.1
    python scripts/gpu/wheels.py split wheels/onnxruntime_gpu-1.31.1-cp312-cp312-manylinux_2_28_x86_64.whl parts

On the GPU machine, once all files of the folder parts are there:

    python -m pip uninstall --yes onnxruntime
    python scripts/gpu/wheels.py install parts
    python scripts/gpu_check.py --only runtime --seconds 480 --output benchmarks/results/gpu.json

onnxruntime-gpu 1.31 needs CUDA 13 and cuDNN 9, which PyTorch brings if it was built for CUDA 13. The wheels of
TensorRT-RTX, tensorrt_rtx_cu13_libs and tensorrt_rtx_cu13_bindings, come in the same way, and so does that of PyAV, av,
which stage loading needs: it trains on clips that the loader decodes meanwhile.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_NEEDED = {
    **{"torch": "2.11", "transformers": "5.17", "accelerate": "1.10", "safetensors": "0.5", "tokenizers": "0.21"},
    **{"click": "8.1.8", "rich": "13.9", "jinja2": "3.1.6", "pillow": "11"},
}
_MODULES = {"pillow": "PIL"}  # where it is not the name


def main() -> None:
    """Checks that the required packages are installed and starts the command."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from blip3v.extras import pip_command  # of this checkout

    missing = [f"{name}>={version}" for name, version in _NEEDED.items() if not _is_installed(name)]
    if missing:
        line = pip_command("install", *missing)
        raise SystemExit(f"this Python lacks packages that the GPU check needs; run: {line}")
    from scripts.gpu.command import gpu_check  # after the check above: it imports torch

    gpu_check()


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(_MODULES.get(name, name)) is not None


if __name__ == "__main__":
    main()
