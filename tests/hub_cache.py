"""The hub's cache as huggingface_hub lays it out: blobs by hash, snapshots of links to them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def as_snapshot(folder: Path, cache: Path, *, shared: bool = False, inside: str = "") -> Path:
    """Copies a folder into a cache as the repository acme/video, and returns its snapshot.

    Args:
        folder: regular files.
        cache: the folder ``hub`` to make.
        shared: whether blobs are links to the store that repositories share, as version 2 makes them.
        inside: the folder of the repository to put the files into.
    """
    repository = cache / "models--acme--video"
    snapshot = repository / "snapshots" / COMMIT / inside
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        blob = repository / "blobs" / digest
        stored = cache / "blobs" / digest[:2] / digest if shared else blob
        stored.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, stored)
        if shared and not blob.is_symlink():
            link(blob, stored)
        (snapshot / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        link(snapshot / file.relative_to(folder), blob)
    return snapshot


def link(path: Path, target: Path) -> None:
    """Makes ``path`` a relative link to ``target``."""
    path.symlink_to(os.path.relpath(target, path.parent))
