"""What is really in a bundle's folder: regular files in known folders. Only links of the hub's cache are followed."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from blip3v.bundle import layout
from blip3v.bundle.hub_links import blob_of
from blip3v.errors import ArtifactError, ArtifactMissingError

__all__ = ["hash_file", "scan"]

_CHUNK_BYTES = 2**20
# A bundle has a few dozen files; a folder with far more is something else.
_MAX_ENTRIES = 10_000


def scan(folder: Path) -> dict[str, int]:
    """Sizes in bytes of all files in a bundle, by name relative to it, with ``/``; not of strangers (``layout``).

    Raises:
        ArtifactMissingError: the folder does not exist.
        ArtifactError: a symbolic link other than those of the hub's cache, a device, a folder that a bundle does not
            have, or too many files.
    """
    if not folder.is_dir():
        raise ArtifactMissingError(f"{folder} is not a folder; a bundle made by `blip3v export` is expected")
    sizes: dict[str, int] = {}
    folders = [""]
    try:
        while folders:
            _scan(folder, folders.pop(), sizes, folders)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be read: {error}") from error
    return sizes


def hash_file(path: Path) -> str:
    """sha256 of a file as hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _scan(root: Path, prefix: str, sizes: dict[str, int], folders: list[str]) -> None:
    """Adds the files of one folder to ``sizes`` and the folders inside it to ``folders``."""
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            name = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            is_folder = stat.S_ISDIR(status.st_mode)
            if (is_folder or stat.S_ISREG(status.st_mode)) and layout.is_stranger(name, is_folder=is_folder):
                continue
            if is_folder:
                if name not in layout.FOLDERS and not layout.is_derived(name):
                    raise ArtifactError(f"{root / name} is a folder that does not belong in a bundle; move it away")
                folders.append(f"{name}/")
            else:
                sizes[name] = _file_size(root / name, status)
            if len(sizes) + len(folders) > _MAX_ENTRIES:
                raise ArtifactError(f"{root} contains more than {_MAX_ENTRIES} files, so it is not a bundle")


def _file_size(path: Path, status: os.stat_result) -> int:
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if not stat.S_ISLNK(status.st_mode):
        raise ArtifactError(f"{path} is not a regular file; a bundle may contain only regular files")
    blob = blob_of(path)
    if blob is None:
        raise ArtifactError(
            f"{path} is a symbolic link; only links of the hub's cache into blobs/ of the same repository are "
            "followed; copy the file itself"
        )
    return blob.stat().st_size
