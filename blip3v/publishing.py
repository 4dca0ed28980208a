"""Files and folders that appear whole or not at all, and whether what goes into them fits the disk.

Both are written under another name beside their place, brought to the disk and renamed. What is published has the
permissions of the umask, whatever wrote it: the safetensors library makes its files private.
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
    """Raises unless ``num_bytes`` are free on the disk that ``path`` is, or will be, on.

    Raises:
        ArtifactError: fewer are free. The message says how much ``what`` needs and how much there is.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if num_bytes > free:
        raise ArtifactError(
            f"{what} needs about {format_bytes(num_bytes)} of disk and {format_bytes(free)} are free at {there}; "
            "make room, or write to another disk"
        )


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; text as UTF-8. What stands at ``path`` is replaced.

    Raises:
        OSError: the file system refuses.
    """
    partial = _sibling(path)
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        replace_file(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(partial: Path, path: Path) -> None:
    """Brings ``partial`` to the disk and renames it to ``path``, in place of what stands there.

    Raises:
        OSError: the file system refuses.
    """
    _sync(partial)
    partial.replace(path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` to write into, renamed to ``path`` at the end of the block.

    What stands at ``path`` gives way then, and comes back if the rename fails. A block that raises leaves ``path`` as
    it was. Bundles have a writer of their own, which also locks out other writers.

    Args:
        path: the folder to make; its parent is there.

    Raises:
        OSError: the file system refuses.
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
    """Gives the files of ``folder`` the permissions of the umask, and brings all of it to the disk.

    Args:
        folder: made by this process, and so with the permissions of the umask itself.

    Raises:
        OSError: the file system refuses.
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
    """Renames ``staging`` to ``path``; a kill at any moment leaves a whole folder at ``path`` or at ``aside``.

    Args:
        staging: a folder that ``sync_tree`` brought to the disk.
        path: its place. A folder that stands there is deleted at the end, and comes back if the rename fails.
        aside: where that folder waits; nothing is there.

    Raises:
        OSError: the file system refuses.
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
    if sys.platform == "win32":  # has no descriptors of folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
