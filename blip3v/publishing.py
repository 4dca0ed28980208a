"""Atomic publishing of files and folders, the checks that it can succeed, and in words why it did not.

Both are written under a temporary name in the same folder, synced to disk and renamed. Published files have the
permissions that the umask allows, whatever wrote them: the safetensors library makes its files private.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from blip3v.errors import ArtifactError
from blip3v.units import format_bytes

__all__ = [
    "cannot_write",
    "check_writable",
    "complete_lines",
    "in_words",
    "is_write_error",
    "new_folder",
    "one_at_a_time",
    "replace_file",
    "replace_folder",
    "require_disk",
    "sync_tree",
    "write_file",
    "writing",
]

_WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EIO: "the disk reports an error",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENOENT: "it does not exist",
    errno.EBADF: "it is closed",
}
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# numpy's tofile hides the system's error: a full disk, or a limit on the size of files.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


class _WriteError(OSError):
    """An error of the file system in words, found before the files that filled the disk were removed."""


def in_words(error: OSError, path: Path | None = None) -> str:
    """What an error of the file system means: a full disk with what is free, no permission, a read-only file system.

    Args:
        error: from the system, or from a library that hides its number.
        path: what was written, to tell the free space of its disk; None: the file that the error names, if any.

    Returns:
        The cause, after the name of the file that it is about if that is not ``path``; no advice.
    """
    if isinstance(error, _WriteError):
        return str(error)
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    number = error.errno
    if number is None and _SHORT_WRITE.search(str(error)):
        number = errno.EFBIG if _limits_file_size() else errno.ENOSPC
    words = _WORDS.get(number or 0) or error.strerror or str(error)
    if number == errno.ENOSPC and (path or named):
        where, free = _free(path or named or Path())
        return f"{words}: {format_bytes(free)} free at {where}"
    return words if named in (None, path) else f"{named}: {words}"


def cannot_write(path: Path, error: OSError) -> ArtifactError:
    """The error for a file or folder that could not be written, with its cause in words."""
    return ArtifactError(
        f"{path} cannot be written: {in_words(error, path)}; choose a folder with free space and write permission"
    )


def check_writable(path: Path) -> None:
    """Checks that ``path`` can be created: its closest existing folder is one, and may be written to.

    Raises:
        ArtifactError: it cannot.
    """
    existing = _existing(path.absolute().parent)
    if not existing.is_dir():
        raise cannot_write(path, NotADirectoryError(errno.ENOTDIR, "", str(existing)))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise cannot_write(path, PermissionError(errno.EACCES, "", str(existing)))


def is_write_error(error: OSError) -> bool:
    """Whether the disk did not take what was written; False if, for example, a file to read was missing."""
    return error.errno in _WRITE_ERRORS or (error.errno is None and _SHORT_WRITE.search(str(error)) is not None)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Puts errors of the file system that the block raises while it writes ``path`` into words.

    Use it inside whatever removes incomplete files: only before that does a full disk show.

    Raises:
        OSError: as raised by the block, but with ``in_words`` as its text if the disk or its rules caused it.
    """
    try:
        yield
    except OSError as error:
        if is_write_error(error):
            raise _WriteError(in_words(error, path)) from error
        raise


@contextlib.contextmanager
def _naming(path: Path, sibling: Path) -> Iterator[None]:
    """Lets errors of the file system about ``sibling``, the temporary name of ``path``, be about ``path``.

    Raises:
        OSError: as raised by the block, about ``path``, or about its folder if that does not exist.
    """
    try:
        yield
    except OSError as error:
        if error.filename != str(sibling):
            raise
        if error.errno != errno.ENOENT:
            raise OSError(error.errno, error.strerror, str(path)) from error
        if not path.parent.exists():
            raise FileNotFoundError(errno.ENOENT, error.strerror, str(path.parent)) from error
        raise OSError(errno.EINVAL, f"nothing can be created in {path.parent}", str(path)) from error


def _limits_file_size() -> bool:
    if sys.platform == "win32":
        return False
    import resource  # not on Windows, so not at the top

    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def _free(path: Path) -> tuple[Path, int]:
    """The closest existing folder of ``path``, and the free bytes on its disk."""
    existing = _existing(path)
    folder = existing if existing.is_dir() else existing.parent
    return folder, shutil.disk_usage(folder).free


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def require_disk(path: Path, num_bytes: int, what: str) -> None:
    """Raises unless ``num_bytes`` are free on the disk that holds, or will hold, ``path``.

    Raises:
        ArtifactError: less is free. The message says how much ``what`` needs and how much is free.
    """
    existing, free = _free(path)
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
        with writing(path), _naming(path, partial):
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
    with _naming(path, sibling):
        sibling.mkdir()
    try:
        staging = sibling / "new"
        staging.mkdir()
        with writing(path):
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


def complete_lines(path: Path) -> list[str]:
    """The lines of a file that is added to line by line, without a last one that a kill cut short.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    return path.read_text("utf-8").split("\n")[:-1]  # what follows the last end of line is empty, or was cut


@contextlib.contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Lets one process at a time into the block for ``target``; the others wait. Its parent folder has to exist."""
    from filelock import FileLock  # part of the extras that write bundles and engines

    path = target.with_name(f".{target.name}.blip3v-lock")
    with FileLock(path):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows deletes it when it is released
                path.unlink(missing_ok=True)
