"""Writes a folder that looks like the released checkpoint, with random weights, to test the whole chain at full size.

    python scripts/synthetic_checkpoint.py /tmp/synthetic --sparse
    python scripts/synthetic_checkpoint.py /tmp/synthetic --form tokenlearner

Names, shapes, dtype, shards, index and configs are the released ones; the weights are random and differ for every
name. The tokenizer is not the real one: it is a small SentencePiece model padded to the released 32,000 pieces, so
ids and counts are right, but texts become more tokens than with the real one. Answers mean nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from math import prod
from pathlib import Path

from torch import Tensor

from blip3v.model.weights import random_tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "model")]

# After the lines above: the tests use the same modules.
from released_files import RELEASED_NUM_PIECES, write_released_tokenizer  # noqa: E402
from synthetic_checkpoint import DTYPES, FORMS, released_shapes, with_form, write_checkpoint  # noqa: E402


def main() -> None:
    """Writes the folder and prints what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the new folder")
    parser.add_argument("--sparse", action="store_true", help="sparse files: correct headers, zeros, 1 MB of disk")
    parser.add_argument("--form", choices=FORMS, default="gttm", help="temporal encoder (default: gttm, as released)")
    parser.add_argument("--dtype", choices=DTYPES, default="F32", help="of all tensors (default: F32, as released)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    options = parser.parse_args()
    shapes = with_form(released_shapes(), options.form)
    num_elements = sum(map(prod, shapes.values()))
    num_bytes = num_elements * DTYPES[options.dtype].itemsize
    _check(options.folder, 0 if options.sparse else num_bytes)

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        return random_tensor(name, shape, seed=options.seed)

    started = time.perf_counter()
    write_checkpoint(options.folder, shapes, make=None if options.sparse else make, dtype=options.dtype)
    write_released_tokenizer(options.folder, num_pieces=RELEASED_NUM_PIECES)
    seconds = time.perf_counter() - started
    print(f"{options.folder}: {len(shapes)} tensors, {num_elements:,} elements, {num_bytes:,} bytes, {seconds:.1f} s")
    print(f"next: blip3v convert {options.folder} -o converted")


def _check(folder: Path, num_bytes: int) -> None:
    if folder.exists():
        raise SystemExit(f"{folder} exists; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if num_bytes > free:
        raise SystemExit(f"{folder} needs {num_bytes:,} bytes and {free:,} are free; use another disk, or --sparse")


if __name__ == "__main__":
    main()
