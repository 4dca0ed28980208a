"""What is really in a bundle's folder: regular files only, in known folders, with no link followed."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from blip3v.bundle import layout
from blip3v.errors import ArtifactError, ArtifactMissingError

__all__ = ["hash_file", "scan"]

_CHUNK_BYTES = 2**20
# A bundle has a few dozen files; a folder with far more is something else.
_MAX_ENTRIES = 10_000


def scan(folder: Path) -> dict[str, int]:
    """Sizes in bytes of all files in a bundle, by name relative to it, with ``/``.

    Raises:
        ArtifactMissingError: the folder does not exist.
        ArtifactError: a symbolic link, a device, a folder that a bundle does not have, or too many files.
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
            if stat.S_ISDIR(status.st_mode):
                if name not in layout.FOLDERS and not layout.is_derived(name):
                    raise ArtifactError(f"{root / name} is a folder that does not belong in a bundle; move it away")
                folders.append(f"{name}/")
            elif stat.S_ISREG(status.st_mode):
                sizes[name] = status.st_size
            else:
                kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
                raise ArtifactError(f"{root / name} is {kind}; a bundle may contain only regular files")
            if len(sizes) + len(folders) > _MAX_ENTRIES:
                raise ArtifactError(f"{root} contains more than {_MAX_ENTRIES} files, so it is not a bundle")
