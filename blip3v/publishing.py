"""Atomic publishing of files and folders, and the check that there is enough disk space for them.

Both are written under a temporary name in the same folder, synced to disk and renamed. Published files have the
permissions that the umask allows, whatever wrote them: the safetensors library makes its files private.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from blip3v.errors import ArtifactError
from blip3v.units import format_bytes

__all__ = ["new_folder", "replace_file", "replace_folder", "require_disk", "sync_tree", "write_file"]


def require_disk(path: Path, num_bytes: int, what: str) -> None:
    """Raises unless ``num_bytes`` are free on the disk that holds, or will hold, ``path``.

    Raises:
        ArtifactError: less is free. The message says how much ``what`` needs and how much is free.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise ArtifactError(
            f"{what} needs about {format_bytes(num_bytes)} of disk space, and {format_bytes(free)} is free at "
            f"{existing}; free some space, or write to another disk"
        )


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file atomically, replacing what is at ``path``; text is written as UTF-8.

    Raises:
        OSError: the file system reports an error.
    """
    partial = _sibling(path)
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        replace_file(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(partial: Path, path: Path) -> None:
    """Syncs ``partial`` to disk and renames it to ``path``, replacing what is there.

    Raises:
        OSError: the file system reports an error.
    """
    _sync(partial)
    partial.replace(path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder next to ``path`` to write into, and renames it to ``path`` when the block ends.

    Only then is an existing ``path`` replaced; it is restored if the rename fails. If the block raises, ``path`` stays
    as it was. Bundles have a writer of their own, which also locks out other writers.

    Args:
        path: the folder to create; its parent must exist.

    Raises:
        OSError: the file system reports an error.
    """
    sibling = _sibling(path)
    sibling.mkdir()
    try:
        staging = sibling / "new"
        staging.mkdir()
        yield staging
        sync_tree(staging)
        replace_folder(staging, path, aside=sibling / "old")
    finally:
        shutil.rmtree(sibling, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Gives the files in ``folder`` the permissions that the umask allows, and syncs everything to disk.

    Args:
        folder: created by this process, so that its own permissions follow the umask.

    Raises:
        OSError: the file system reports an error.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
        else:
            path.chmod(mode)
            _sync(path)
    _sync_folder(folder)


def replace_folder(staging: Path, path: Path, *, aside: Path) -> None:
    """Renames ``staging`` to ``path``; a kill at any moment leaves a complete folder at ``path`` or at ``aside``.

    Args:
        staging: a folder that ``sync_tree`` has synced to disk.
        path: the destination. A folder already there is deleted at the end, or restored if the rename fails.
        aside: where that folder is kept until then; must not exist.

    Raises:
        OSError: the file system reports an error.
    """
    if path.exists():
        path.rename(aside)
    try:
        staging.rename(path)
    except BaseException:
        if aside.exists():
            aside.rename(path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sibling(path: Path) -> Path:
    """A new hidden name in the same folder, so that renaming stays on one disk."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # has no file descriptors for folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
