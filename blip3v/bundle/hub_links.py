"""Links as the hub's cache has them: each file of a snapshot is one, into the ``blobs/`` of the same repository.

Also here: a folder for engines, with the files of a bundle that were checked, without links and without any others.

    hub/models--ORG--NAME/snapshots/COMMIT/onnx/FILE -> ../../../blobs/HASH
    hub/models--ORG--NAME/blobs/HASH                 a file, or (huggingface_hub 2) -> ../../blobs/HH/HASH
    hub/blobs/HH/HASH                                a file that several repositories share

No other link is followed anywhere in a bundle.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from blip3v.errors import ArtifactError, BackendError

__all__ = ["blob_of", "real_files", "repository_of"]

_REPOSITORY = re.compile(r"models--.+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's hash of a small file, sha256 of a large one
_SHARED = re.compile(r"[0-9a-f]{64}")


def blob_of(link: Path) -> Path | None:
    """The file behind a link of the hub's cache; None if it is any other link.

    Args:
        link: a symbolic link in a snapshot.

    Raises:
        OSError: the file system reports an error.
    """
    folder = link.parent.resolve()
    repository = repository_of(folder)
    blob = _target(folder / link.name)
    if repository is None or blob is None or blob.parent != repository / "blobs" or not _BLOB.fullmatch(blob.name):
        return None
    if blob.is_symlink():
        blob = _target(blob)
        if blob is None or not _is_shared(blob, repository.parent):
            return None
    # A link anywhere else on the way leads to another path than the one that was checked.
    return blob if Path(os.path.realpath(link)) == blob and blob.is_file() else None


@contextlib.contextmanager
def real_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yields a folder with ``names`` as files, and no other entry beside them: ``folder``, or a temporary one.

    Engines do not follow a link to the data of a graph if it leads out of the graph's folder, and read any other file
    of that folder which a graph names, such as one that a scan passes over (``layout.is_stranger``). So where there is
    either, they get hard links to the same files. They keep a file that they have mapped, so the temporary folder is
    removed when the block ends. Where no hard link can be made (the cache is on another disk, or somebody else's), the
    block gets ``folder`` and its links: ONNX Runtime follows them if they lead into one folder.

    Args:
        folder: a bundle that was scanned.
        names: the files that are needed, relative to it: all that the manifest lists in their folders.

    Raises:
        ArtifactError: there are other entries, and no hard links can be made; or the block ended in a
            ``BackendError`` of an engine that got links.
    """
    others = _others(folder, names)
    if not others and not any((folder / name).is_symlink() for name in names):
        yield folder
        return
    with contextlib.ExitStack() as stack:
        staged, problem = _staged(folder, names, stack)
        if staged is None and others:
            raise ArtifactError(
                f"{folder} contains {', '.join(others[:8])}, which does not belong to it and which engines could read, "
                f"and the other files cannot be hard-linked to a folder of their own ({problem}); delete it, "
                "or set TMPDIR to a folder on the same disk"
            )
        try:
            yield staged or folder
        except BackendError as error:
            if staged is not None or type(error) is not BackendError:
                raise
            raise ArtifactError(
                f"{folder} holds links into the hub's cache, which this engine does not follow, and they cannot be "
                f"replaced by hard links ({problem}); copy the files and use the copy: `cp -rL {folder} my-bundle`"
            ) from error


def _others(folder: Path, names: Sequence[str]) -> list[str]:
    """What else is in the folders of ``names``, sorted."""
    parents = {name.rpartition("/")[0] for name in names}
    found = {f"{parent}/{entry}".lstrip("/") for parent in parents for entry in os.listdir(folder / parent)}
    return sorted(found - set(names))


def _staged(folder: Path, names: Sequence[str], stack: contextlib.ExitStack) -> tuple[Path | None, OSError | None]:
    """The temporary folder, which ``stack`` removes; or None and why there is none."""
    problem: OSError | None = None
    for parent in _parents(folder):
        try:
            staged = Path(tempfile.mkdtemp(prefix=".blip3v-", dir=parent))
            stack.callback(shutil.rmtree, staged, ignore_errors=True)
            for name in names:
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(os.path.realpath(folder / name), staged / name)
        except OSError as error:
            problem = error
        else:
            return staged, None
    return None, problem


def _parents(folder: Path) -> Iterable[str | Path]:
    """Where a temporary folder may be made: hard links need the disk of the files."""
    folder = folder.resolve()
    return tempfile.gettempdir(), repository_of(folder) or folder.parent


def repository_of(folder: Path) -> Path | None:
    """The folder of the hub's repository that a folder of a snapshot belongs to; ``folder`` has no links in it."""
    for commit in (folder, *folder.parents):
        snapshots, repository = commit.parent, commit.parent.parent
        if _COMMIT.fullmatch(commit.name) and snapshots.name == "snapshots" and _REPOSITORY.fullmatch(repository.name):
            return repository
    return None


def _target(link: Path) -> Path | None:
    """Where a link leads, if it leads there from its own folder and not from the root."""
    if not link.is_symlink():
        return None
    target = os.readlink(link)
    return None if os.path.isabs(target) else Path(os.path.normpath(link.parent / target))


def _is_shared(blob: Path, cache: Path) -> bool:
    return (
        blob.parent.parent == cache / "blobs"
        and _SHARED.fullmatch(blob.name) is not None
        and blob.parent.name == blob.name[:2]
    )
