"""Writing a bundle: it appears at its place whole, or not at all.

Files go into a hidden sibling folder, which is hashed, brought to the disk, read back and renamed. A writer holds a
lock on its sibling; one that was killed left an unlocked one, which the next writer to the same place removes.
What is not here: what the files hold (``export/``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from blip3v.bundle import layout
from blip3v.bundle.manifest import FileEntry, Manifest
from blip3v.bundle.reader import open_bundle
from blip3v.bundle.scan import hash_file, scan
from blip3v.errors import ArtifactError, UsageError

__all__ = ["BundleWriter"]

_ATTEMPTS = 100
_PARTIAL, _OLD = ".blip3v-partial", ".blip3v-old"


class BundleWriter:
    """Context manager that makes one bundle.

    Leaving the block without ``publish``, by an exception or Ctrl-C too, removes what was written.

    Args:
        target: the folder to make.
        force: whether a bundle that is already there gives way, at the moment of publication and not before. A folder
            that is not a bundle stays, whatever is asked.

    Raises:
        UsageError: the target exists and ``force`` is false, or it is not a bundle.
        ArtifactError: the folder cannot be written.
    """

    def __init__(self, target: Path, *, force: bool = False) -> None:
        self._target = Path(os.path.abspath(target))
        self._force = force
        self._staging: Path | None = None
        self._lock = -1

    def __enter__(self) -> BundleWriter:
        _check_target(self._target, force=self._force)
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._target.parent):
                _clean_up(self._target)
            self._staging, self._lock = _new_sibling(self._target)
            for folder in ("onnx", "reports"):
                (self._staging / folder).mkdir()
        except OSError as error:
            self._discard()
            raise _cannot_write(self._target, error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    @property
    def path(self) -> Path:
        """The folder to write the files into; ``onnx/`` and ``reports/`` are there."""
        if self._staging is None:
            raise UsageError("the bundle writer has no folder: use it in a with block, before publish")
        return self._staging

    def publish(self, manifest: Manifest) -> Path:
        """Hashes the files, adds the manifest, checks that the bundle opens, and moves it to its place.

        Args:
            manifest: without ``files``, which are filled in here.

        Returns:
            The bundle's folder.

        Raises:
            ArtifactError: a file is missing or none that a bundle holds, or the disk refuses.
            UsageError: somebody else made the target meanwhile.
        """
        staging = self.path
        try:
            dataclasses.replace(manifest, files=_entries(staging)).save(staging / layout.MANIFEST)
            hash_file(staging / layout.MANIFEST, sync=True)
            open_bundle(staging)
            for folder in (staging, staging / "onnx", staging / "reports"):
                _sync_folder(folder)
            with _locked(self._target.parent):
                _check_target(self._target, force=self._force)
                _move(staging, self._target)
                self._staging = None
                _sync_folder(self._target.parent)
        except OSError as error:
            raise _cannot_write(self._target, error) from error
        return self._target

    def _discard(self) -> None:
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _check_target(target: Path, *, force: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} exists and is no folder; choose another output folder")
    if not target.exists():
        return
    if not force:
        raise UsageError(
            f"{target} exists", remedy="choose another output folder, or replace a bundle with `force=True`"
        )
    if any(target.iterdir()) and not _is_bundle(target):
        raise UsageError(f"{target} is not a bundle, so it is not replaced; choose another output folder")


def _is_bundle(folder: Path) -> bool:
    """Whether nothing but a bundle's files lies there: one that was damaged may be replaced, a user's folder not."""
    try:
        names = scan(folder)
    except ArtifactError:
        return False
    return layout.MANIFEST in names and all(
        name == layout.MANIFEST or layout.is_hashed(name) or layout.is_derived(name) for name in names
    )


def _entries(staging: Path) -> dict[str, FileEntry]:
    sizes = scan(staging)
    for name in sizes:
        if not layout.is_hashed(name):
            raise ArtifactError(f"{name} was written into the bundle, which cannot hold it; see bundle/layout.py")
    return {
        name: FileEntry(sha256=hash_file(staging / name, sync=True), size_bytes=size)
        for name, size in sorted(sizes.items())
    }


def _move(staging: Path, target: Path) -> None:
    """Renames, with what is there set aside first and put back if that fails."""
    if not target.exists():
        staging.rename(target)
        return
    aside = staging.with_suffix(_OLD)
    target.rename(aside)
    try:
        staging.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _new_sibling(target: Path) -> tuple[Path, int]:
    """A new folder beside the target and the descriptor that holds its lock.

    Another writer may take the folder for an abandoned one before it is locked; then there is another attempt.
    """
    for _ in range(_ATTEMPTS):
        path = target.parent / f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}"
        path.mkdir()
        try:
            lock = _open_folder(path)
        except FileNotFoundError:
            continue
        if (lock < 0 or _try_lock(lock)) and path.exists():
            return path, lock
        os.close(lock)
    raise ArtifactError(f"no folder could be made beside {target}; other exports keep removing it")


def _clean_up(target: Path) -> None:
    """Removes siblings of writers that are gone; the caller holds the lock of the parent folder.

    A writer that was killed between two renames left the old bundle set aside: it goes back to its place. Without
    file locks (Windows) nobody can tell whether a writer is gone, and its sibling stays.
    """
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}(" + f"{_PARTIAL}|{_OLD})")
    for path in target.parent.iterdir():
        if not pattern.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        if path.suffix == _OLD and not target.exists():
            path.rename(target)
        elif path.suffix == _OLD:
            shutil.rmtree(path, ignore_errors=True)
        else:
            _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    try:
        lock = _open_folder(path)
    except FileNotFoundError:
        return
    if lock >= 0:
        if _try_lock(lock):
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


if sys.platform == "win32":

    def _open_folder(path: Path) -> int:
        return -1

    def _try_lock(descriptor: int) -> bool:
        return False

    @contextlib.contextmanager
    def _locked(folder: Path) -> Iterator[None]:
        yield

else:
    import fcntl

    def _open_folder(path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextlib.contextmanager
    def _locked(folder: Path) -> Iterator[None]:
        """One publication at a time in a folder, so that two writers never interleave their renames."""
        descriptor = _open_folder(folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = _open_folder(folder)
    if descriptor >= 0:
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(target: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{target} cannot be written: {error}; choose a folder with room and permission")
