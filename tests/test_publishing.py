"""A file or folder is replaced completely or stays as it was."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from blip3v.errors import ArtifactError
from blip3v.publishing import cannot_write, check_writable, in_words, is_write_error, new_folder, write_file, writing


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    value = getattr(request, "param", 0o022)
    before = os.umask(value)
    yield value
    os.umask(before)


def test_it_appears_at_the_end_of_the_block_and_replaces_what_was_there(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "made"
    for text in ("first", "second"):
        with new_folder(path) as staging:
            (staging / text).write_text(text)
            assert not (path / text).exists()
        assert [entry.name for entry in path.iterdir()] == [text]
    assert path.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileNotFoundError), new_folder(path) as staging:
        (staging / "nowhere" / "new").touch()
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_is_restored_if_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made"
    path.mkdir()
    (path / "old").touch()
    rename = Path.rename

    def refuse_the_new_one(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise OSError("the disk refuses")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OSError, match="the disk refuses"), new_folder(path) as staging:
        (staging / "new").touch()
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002], indirect=True, ids=oct)
def test_what_is_published_has_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    """safetensors makes its files private: one user could not read a bundle that another exported."""
    with new_folder(tmp_path / "made") as staging:
        (staging / "inner").mkdir()
        save_file({"a": np.zeros(1)}, staging / "inner" / "a.safetensors")
    write_file(tmp_path / "report.json", "{}")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    folder, file = 0o777 & ~umask, 0o666 & ~umask
    assert modes == {"made": folder, "inner": folder, "a.safetensors": file, "report.json": file}


@pytest.mark.parametrize("content", ["\u00e4\n", b"\xe4\r\n"], ids=["text", "bytes"])
def test_a_file_is_replaced_atomically(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write_file(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_stays_as_it_was_if_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(_: int) -> None:
        raise OSError("the disk refuses")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="the disk refuses"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: 3.00 KiB free at {folder}"),
        (OSError("98304 requested and 37277 written"), "the disk is full: 3.00 KiB free at {folder}"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up"),
        (OSError(errno.EFBIG, "File too large"), "the file would be larger than the system allows"),
        (OSError(errno.EROFS, "Read-only", "/elsewhere/y"), "/elsewhere/y: the file system is read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (OSError(errno.EXDEV, "Invalid cross-device link"), "Invalid cross-device link"),
        (OSError("the disk refuses"), "the disk refuses"),
    ],
    ids=["full", "numpy", "quota", "size", "read-only", "permission", "other", "no number"],
)
def test_an_error_of_the_disk_is_put_into_words(
    error: OSError, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk was shown as "98304 requested and 37277 written", others with their number."""
    usage = shutil.disk_usage(tmp_path)._replace(free=3072)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    path = tmp_path / "new" / "x"
    assert in_words(error, path) == words.format(folder=tmp_path)
    refused = cannot_write(path, error)
    assert str(refused).startswith(f"{path} cannot be written: {words.format(folder=tmp_path)}; choose ")


def test_a_full_disk_is_described_before_the_incomplete_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)

    def free(_: Path) -> object:
        return usage._replace(free=10**9 - 10**8 * len(list(tmp_path.rglob("*.part"))))

    monkeypatch.setattr(shutil, "disk_usage", free)

    def fill(folder: Path) -> None:
        (folder / "weights.part").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"the disk is full: 858 MiB free"), new_folder(tmp_path / "made") as staging:
        fill(staging)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file", "weights")
    assert not is_write_error(error)
    with pytest.raises(FileNotFoundError) as found, writing(tmp_path):
        raise error
    assert found.value is error


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES])
def test_an_error_names_what_was_to_be_made(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`data -o /proc/x` said "/proc/.x.46c2e267.partial: it does not exist"."""

    def refuse(self: Path, *_: object) -> None:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    path = tmp_path / "x"
    words = f"nothing can be created in {tmp_path}" if code == errno.ENOENT else "permission denied"
    with pytest.raises(OSError, match=r"/x'$") as folder, new_folder(path):
        pass
    with pytest.raises(OSError, match=r"/x'$") as file:
        write_file(path, "")
    assert [in_words(found.value) for found in (folder, file)] == 2 * [f"{path}: {words}"]


def test_a_file_in_a_folder_that_does_not_exist_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as found:
        write_file(tmp_path / "nowhere" / "x", "")
    assert in_words(found.value) == f"{tmp_path / 'nowhere'}: it does not exist"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_limit_on_the_size_of_files_is_not_called_a_full_disk(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from blip3v.publishing import write_file, writing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
path = Path(sys.argv[1])
for write in (lambda: np.zeros(9000).tofile(path), lambda: write_file(path, bytes(9000))):
    try:
        with writing(path):
            write()
    except OSError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, check=True)
    assert done.stdout == 2 * "the file would be larger than the system allows\n"


def test_a_place_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    where = re.escape(str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match=f"cannot be written: {where}: a part of the path is a file; choose"):
        check_writable(tmp_path / "file" / "x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ArtifactError, match=f"cannot be written: {re.escape(str(tmp_path))}: permission denied; "):
        check_writable(tmp_path / "x")
