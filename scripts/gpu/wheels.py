"""Brings wheels to a machine without a network in parts that are small enough to travel.

    python scripts/gpu/wheels.py split onnxruntime_gpu-1.31.1-cp312-cp312-manylinux_2_28_x86_64.whl parts
    python scripts/gpu/wheels.py install parts

``split`` writes WHEEL.part00, WHEEL.part01, ... and WHEEL.json, which has the hash of each. ``install``, on the other
machine, checks every part of every wheel in the folder, joins them and installs the wheels with pip: without an index,
and without what they depend on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["join", "split"]

_MIB = 2**20
_PART_MIB = 40


def main() -> None:
    """Splits a wheel, or installs those that were split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    splitting = commands.add_parser("split")
    splitting.add_argument("wheel", type=Path)
    splitting.add_argument("folder", type=Path, help="where the parts go")
    splitting.add_argument("--mib", type=int, default=_PART_MIB, help=f"of a part, at most (default: {_PART_MIB})")
    installing = commands.add_parser("install")
    installing.add_argument("folder", type=Path, help="that holds all parts")
    installing.add_argument("--target", type=Path, help="a folder for PYTHONPATH (default: this Python's packages)")
    options = parser.parse_args()
    if options.command == "split":
        for path in split(options.wheel, options.folder, part_bytes=options.mib * _MIB):
            print(path)
    else:
        _install(options.folder, options.target)


def split(wheel: Path, folder: Path, *, part_bytes: int) -> list[Path]:
    """Writes the parts of a wheel and their hashes to a folder; returns what was written, the hashes last."""
    folder.mkdir(parents=True, exist_ok=True)
    content, paths, parts = wheel.read_bytes(), [], {}
    for index, first in enumerate(range(0, len(content), part_bytes)):
        part = content[first : first + part_bytes]
        path = folder / f"{wheel.name}.part{index:02}"
        path.write_bytes(part)
        paths.append(path)
        parts[path.name] = _sha256(part)
    record = folder / f"{wheel.name}.json"
    record.write_text(json.dumps({"sha256": _sha256(content), "parts": parts}, indent=1) + "\n", "utf-8")
    return [*paths, record]


def join(record: Path, folder: Path) -> Path:
    """Joins the parts that lie beside their record; returns the wheel, which is as it was before it was split.

    Raises:
        SystemExit: a part is missing or damaged.
    """
    values = json.loads(record.read_text("utf-8"))
    wheel = folder / record.name.removesuffix(".json")
    with wheel.open("wb") as file:
        for name, sha256 in values["parts"].items():
            path = record.with_name(name)
            part = path.read_bytes() if path.is_file() else b""
            if _sha256(part) != sha256:
                raise SystemExit(f"{path} is {'damaged' if part else 'not there'}; bring it again")
            file.write(part)
    if _sha256(wheel.read_bytes()) != values["sha256"]:
        raise SystemExit(f"the parts of {wheel.name} belong to another wheel; split it again")
    return wheel


def _install(folder: Path, target: Path | None) -> None:
    records = sorted(folder.glob("*.whl.json"))
    if not records:
        raise SystemExit(f"{folder} has no *.whl.json; `wheels.py split` writes one beside the parts")
    with tempfile.TemporaryDirectory() as temporary:
        wheels = [str(join(record, Path(temporary))) for record in records]
        place = [] if target is None else ["--target", str(target), "--upgrade"]
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", *place, *wheels]
        raise SystemExit(subprocess.run(command).returncode)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
