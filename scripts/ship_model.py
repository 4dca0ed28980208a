"""Copies a finished run into the package: its model folder and its log, to blip3v/models.

Run it from the root of the checkout:
python scripts/ship_model.py runs/tiny-tokenlearner
blip3v eval -m blip3v/models/tiny-tokenlearner -o blip3v/models/tiny-tokenlearner/evaluation.json
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from blip3v.model.folder import open_model_folder

MODELS = Path("blip3v/models")
MAX_WEIGHT_BYTES = 8 * 10**6


def main(run: Path) -> None:
    """Copies the model folder and the log of ``run``."""
    model = open_model_folder(run / "model")
    size = model.weights.stat().st_size
    if size > MAX_WEIGHT_BYTES:
        sys.exit(f"{model.weights} has {size} bytes; a shipped model has at most {MAX_WEIGHT_BYTES}")
    target = MODELS / f"tiny-{model.config.temporal.encoder}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(model.path, target)
    shutil.copy(run / "log.jsonl", target / "log.jsonl")
    print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
