"""Writing a bundle atomically: it appears complete, or not at all.

Files are written to a hidden sibling folder, hashed, read back, synced to disk and renamed. A writer holds a lock in
its sibling folder; a killed writer leaves an unlocked one behind, which the next writer to the same target removes.
Not here: the contents of the files (``export/``).
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from blip3v.bundle import layout
from blip3v.bundle.manifest import FileEntry, Manifest
from blip3v.bundle.reader import open_bundle
from blip3v.bundle.scan import hash_file, scan
from blip3v.errors import ArtifactError, UsageError
from blip3v.publishing import cannot_write, check_writable, is_write_error, one_at_a_time, replace_folder, sync_tree

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["BundleWriter", "check_target"]

# In a writer's sibling folder: its lock, the bundle that it writes, and the old one that it replaces.
_LOCK, _NEW, _OLD = "lock", "bundle", "old"


class BundleWriter:
    """Context manager that writes one bundle.

    Leaving the block without ``publish``, whether by an exception, Ctrl-C or otherwise, removes what was written.

    Args:
        target: the folder to create.
        force: whether to replace an existing bundle, which happens on publication and not before. A folder that is not
            a bundle is never replaced, nor is one that git or the hub's cache owns a part of.

    Raises:
        UsageError: the target exists and ``force`` is false, or it is not a bundle.
        ArtifactError: the folder cannot be written.
    """

    def __init__(self, target: Path, *, force: bool = False) -> None:
        self._target = Path(os.path.abspath(target))
        self._force = force
        self._sibling = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}.blip3v-partial")
        self._lock: BaseFileLock | None = None
        self._published = False

    def __enter__(self) -> BundleWriter:
        check_target(self._target, force=self._force)
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(self._target):  # so that renames never interleave
                _clean_up(self._target)
                self._sibling.mkdir()
                self._lock = _try_lock(self._sibling)
            for folder in ("", "onnx", "reports"):
                (self._sibling / _NEW / folder).mkdir()
        except OSError as error:
            self._discard()
            raise cannot_write(self._target, error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, OSError) and is_write_error(error):
                raise cannot_write(self._target, error) from error  # now, while a full disk shows
        finally:
            self._discard()

    @property
    def path(self) -> Path:
        """The folder to write the files into; ``onnx/`` and ``reports/`` exist already."""
        if self._lock is None or self._published:
            raise UsageError("the bundle writer has no folder: use it in a with block, before publish")
        return self._sibling / _NEW

    def publish(self, manifest: Manifest) -> Path:
        """Hashes the files, adds the manifest, checks that the bundle opens, and moves it into place.

        Args:
            manifest: without ``files``, which are filled in here.

        Returns:
            The bundle's folder.

        Raises:
            ArtifactError: a file is missing or does not belong in a bundle, or the folder cannot be written.
            UsageError: the target has been created by someone else in the meantime.
        """
        staging = self.path
        try:
            dataclasses.replace(manifest, files=_entries(staging)).save(staging / layout.MANIFEST)
            open_bundle(staging)
            sync_tree(staging)
            with one_at_a_time(self._target):  # so that renames never interleave
                check_target(self._target, force=self._force)
                replace_folder(staging, self._target, aside=self._sibling / _OLD)
            self._published = True
        except OSError as error:
            raise cannot_write(self._target, error) from error
        return self._target

    def _discard(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        shutil.rmtree(self._sibling, ignore_errors=True)


def check_target(target: Path, *, force: bool) -> None:
    """Checks that a bundle may be written to ``target``.

    Raises:
        UsageError: the target exists and ``force`` is false, or it is not a bundle.
        ArtifactError: the folder around it cannot be written to.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} exists and is not a folder; choose another output folder")
    if not target.exists():
        check_writable(target)
        return
    if not force:
        raise UsageError(
            f"{target} exists", remedy="choose another output folder, or replace a bundle with `force=True`"
        )
    if any(target.iterdir()) and not _is_bundle(target):
        raise UsageError(f"{target} is not a bundle, so it is not replaced; choose another output folder")
    owned = sorted(item.name for item in target.iterdir() if item.name in layout.GIT)
    if owned:
        raise UsageError(
            f"{target} contains {', '.join(owned)}, which replacing it would delete; choose another output folder, "
            "and copy the files over"
        )


def _is_bundle(folder: Path) -> bool:
    """Whether it contains only a bundle's files: a damaged bundle may be replaced, a user's folder may not.

    Nor may a snapshot of the hub's cache, whose files are links.
    """
    try:
        names = scan(folder)
    except ArtifactError:
        return False
    return layout.MANIFEST in names and all(
        (name == layout.MANIFEST or layout.is_hashed(name) or layout.is_derived(name))
        and not (folder / name).is_symlink()
        for name in names
    )


def _entries(staging: Path) -> dict[str, FileEntry]:
    sizes = {name: size for name, size in scan(staging).items() if name != layout.ACCURACY}
    for name in sizes:
        if not layout.is_hashed(name):
            raise ArtifactError(f"{name} was written into the bundle but does not belong there; see bundle/layout.py")
    return {name: FileEntry(sha256=hash_file(staging / name), size_bytes=size) for name, size in sorted(sizes.items())}


def _try_lock(sibling: Path) -> BaseFileLock | None:
    """Acquires the lock of a writer's sibling folder; None if that writer is alive."""
    from filelock import FileLock, Timeout  # part of the extras that write; reading a bundle does not need it

    lock = FileLock(sibling / _LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _clean_up(target: Path) -> None:
    """Removes the sibling folders of dead writers; the caller makes sure that nobody publishes meanwhile.

    A writer killed between its two renames has left the old bundle set aside: it is moved back into place.
    """
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.blip3v-partial")
    for sibling in target.parent.iterdir():
        if not pattern.fullmatch(sibling.name) or sibling.is_symlink() or not sibling.is_dir():
            continue
        lock = _try_lock(sibling)
        if lock is not None:
            lock.release()
            if (sibling / _OLD).is_dir() and not target.exists():
                (sibling / _OLD).rename(target)
            shutil.rmtree(sibling, ignore_errors=True)
