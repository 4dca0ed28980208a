"""Folders: one that appears whole or not at all, and whether what goes into it fits the disk."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from blip3v.errors import ArtifactError
from blip3v.units import format_bytes

__all__ = ["new_folder", "require_disk"]


def require_disk(path: Path, num_bytes: int, what: str) -> None:
    """Lets go on where ``num_bytes`` are free on the disk that ``path`` is, or will be, on.

    Raises:
        ArtifactError: they are not. The message says ``what`` needs how much and how much there is.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if num_bytes > free:
        raise ArtifactError(
            f"{what} needs about {format_bytes(num_bytes)} of disk and {format_bytes(free)} are free at {there}; "
            "make room, or write to another disk"
        )


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` to write into, renamed to ``path`` at the end of the block.

    What stands at ``path`` gives way then, and comes back if the rename fails. A block that raises leaves ``path`` as
    it was. Bundles have a writer of their own, which also brings its files to the disk and locks out other writers.

    Args:
        path: the folder to make; its parent is there.

    Raises:
        OSError: the file system refuses.
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp makes it private
        _put(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put(staging: Path, path: Path) -> None:
    if not path.exists():
        staging.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        path.rename(aside / path.name)
        try:
            staging.rename(path)
        except OSError:
            (aside / path.name).rename(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
