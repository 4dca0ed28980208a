"""Bundles in git, touched by a file manager, or in the hub's cache: they open, and nothing else gets in that way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_bundle import CONFIG, write_fake_bundle
from hub_cache import as_snapshot, link

from blip3v.bundle import open_bundle, verify_bundle
from blip3v.bundle.hub_links import real_files
from blip3v.errors import ArtifactError, ArtifactHashError, BackendError, OutOfMemoryError, UsageError

ONNX_FILES = ["onnx/video_encoder.onnx", "onnx/decoder.onnx", "onnx/decoder.data"]
STRANGERS = [
    ".git/objects/ab/cdef", ".git/HEAD", ".gitattributes", ".gitignore", "onnx/.gitattributes", ".DS_Store",
    "onnx/.DS_Store", "reports/._parity.json", "._config.json", "Thumbs.db", "desktop.ini", ".directory",
    ".cache/huggingface/download/config.json.metadata",
]  # fmt: skip


def add(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


@pytest.mark.parametrize("name", [*STRANGERS, ".git"])
def test_what_git_and_file_managers_leave_is_passed_over(bundle: Path, name: str) -> None:
    """A bundle in git, or opened once in the Finder, was refused: ".git is a folder that does not belong"."""
    add(bundle / name)
    assert open_bundle(bundle).config == CONFIG
    assert verify_bundle(bundle).ok


def test_a_clone_without_the_large_files_says_what_to_run(bundle: Path) -> None:
    (bundle / "onnx" / "decoder.data").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n")
    with pytest.raises(ArtifactHashError, match=r"decoder\.data has 57 bytes; 64 were written; run `git lfs pull`"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["onnx/.git", "onnx/.git/HEAD", ".cache/other/x", ".cache/x", ".github/x", ".gitmodules", "x.DS_Store",
             ".DS_Store/x", "Thumbs.db/x", ".directory/x", "._x/y", ".hidden"]
)  # fmt: skip
def test_any_other_name_stays_refused(bundle: Path, name: str) -> None:
    add(bundle / name)
    with pytest.raises(ArtifactError, match=r"does not list|does not belong in a bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [".DS_Store", ".git", ".gitignore", "onnx/._decoder.data"])
def test_a_stranger_that_is_a_link_or_a_pipe_stays_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    (bundle / name).symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="symbolic link"):
        open_bundle(bundle)
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(ArtifactError, match="not a regular file"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [".DS_Store", ".cache/huggingface/x", "._config.json"])
def test_force_replaces_a_bundle_with_leftovers_of_file_managers(tmp_path: Path, name: str) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    add(path / name)
    write_fake_bundle(path, force=True, opset=25)
    assert open_bundle(path).manifest.opset == 25
    assert not (path / name).exists()


@pytest.mark.parametrize("name", [".git/HEAD", ".git", ".gitattributes", ".gitignore"])
def test_force_never_deletes_what_git_owns(tmp_path: Path, name: str) -> None:
    """Such a bundle is a bundle now; replacing it would delete the history of a repository."""
    path = write_fake_bundle(tmp_path / "bundle")
    add(path / name)
    with pytest.raises(UsageError, match=r"contains \.git\w*, which replacing it would delete"):
        write_fake_bundle(path, force=True, opset=25)
    assert (path / name).read_bytes() == b"x"
    assert open_bundle(path).manifest.opset == 24


def test_force_never_replaces_a_snapshot_of_the_hubs_cache(pristine_bundle: Path, tmp_path: Path) -> None:
    snapshot = as_snapshot(pristine_bundle, tmp_path / "hub")
    with pytest.raises(UsageError, match="is not a bundle"):
        write_fake_bundle(snapshot, force=True, opset=25)
    assert open_bundle(snapshot).manifest.opset == 24


@pytest.mark.parametrize("shared", [False, True], ids=["blobs", "shared-blobs"])
@pytest.mark.parametrize("inside", ["", "fp16/tokenlearner"])
def test_a_snapshot_of_the_hubs_cache_opens(pristine_bundle: Path, tmp_path: Path, shared: bool, inside: str) -> None:
    """Every file of it was refused as a symbolic link."""
    snapshot = as_snapshot(pristine_bundle, tmp_path / "hub", shared=shared, inside=inside)
    assert (snapshot / "onnx" / "decoder.data").is_symlink()
    assert open_bundle(snapshot).config == CONFIG
    assert open_bundle(snapshot).embeddings().shape == (611, 128)
    assert verify_bundle(snapshot).ok
    (tmp_path / "my-model").symlink_to(snapshot)
    assert verify_bundle(tmp_path / "my-model").ok


@pytest.mark.parametrize("shared", [False, True], ids=["blobs", "shared-blobs"])
def test_the_content_of_a_blob_is_hashed(pristine_bundle: Path, tmp_path: Path, shared: bool) -> None:
    snapshot = as_snapshot(pristine_bundle, tmp_path / "hub", shared=shared)
    blob = (snapshot / "onnx" / "decoder.data").resolve()
    blob.write_bytes(b"\xff" + blob.read_bytes()[1:])
    with pytest.raises(ArtifactHashError, match=r"decoder\.data is not the file that was written"):
        open_bundle(snapshot)
    assert [result.name for result in verify_bundle(snapshot).bad] == ["onnx/decoder.data"]


def relink(path: Path, target: str | Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def absolute(file: Path, repository: Path) -> None:
    relink(file, file.resolve())


def out_of_the_repository(file: Path, repository: Path) -> None:
    other = repository.parent / "models--acme--other" / "blobs" / file.resolve().name
    add(other)
    file.unlink()
    link(file, other)


def out_of_the_cache(file: Path, repository: Path) -> None:
    relink(file, "../../../../../secret")


def not_a_hash(file: Path, repository: Path) -> None:
    shutil.copyfile(file, repository / "blobs" / "secret")
    relink(file, "../../../blobs/secret")


def below_blobs(file: Path, repository: Path) -> None:
    blob = file.resolve()
    add(repository / "blobs" / "deep" / blob.name)
    relink(file, f"../../../blobs/deep/{blob.name}")


def beside_it(file: Path, repository: Path) -> None:
    relink(file, "decoder.onnx")


def chain_in_the_snapshot(file: Path, repository: Path) -> None:
    relink(file.with_name("decoder.more.data"), os.readlink(file))
    relink(file, "decoder.more.data")


def chain_in_blobs(file: Path, repository: Path) -> None:
    blob = file.resolve()
    blob.rename(blob.with_name("f" * 64))
    relink(blob, "f" * 64)


def chain_to_a_secret(file: Path, repository: Path) -> None:
    relink(file.resolve(), "../../../secret")


def shared_under_another_name(file: Path, repository: Path) -> None:
    blob = file.resolve()
    add(repository.parent / "blobs" / "ab" / ("c" * 64))
    relink(blob, f"../../blobs/ab/{'c' * 64}")


def shared_link_to_a_secret(file: Path, repository: Path) -> None:
    blob, stored = file.resolve(), repository.parent / "blobs" / "ab" / ("ab" * 32)
    add(stored)
    relink(stored, "../../../secret")
    relink(blob, os.path.relpath(stored, blob.parent))


def dangling(file: Path, repository: Path) -> None:
    file.resolve().unlink()


def folder(file: Path, repository: Path) -> None:
    blob = file.resolve()
    blob.unlink()
    blob.mkdir()


def blobs_elsewhere(file: Path, repository: Path) -> None:
    (repository / "blobs").rename(repository.parent.parent / "elsewhere")
    (repository / "blobs").symlink_to(repository.parent.parent / "elsewhere")


def loop(file: Path, repository: Path) -> None:
    relink(file.resolve(), file.resolve().name)


OTHER_LINKS = [
    absolute, out_of_the_repository, out_of_the_cache, not_a_hash, below_blobs, beside_it, chain_in_the_snapshot,
    chain_in_blobs, chain_to_a_secret, shared_under_another_name, shared_link_to_a_secret, dangling, folder,
    blobs_elsewhere, loop,
]  # fmt: skip


@pytest.mark.parametrize("change", OTHER_LINKS, ids=lambda change: change.__name__)
def test_every_other_link_stays_refused(
    pristine_bundle: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    snapshot = as_snapshot(pristine_bundle, tmp_path / "hub")
    (tmp_path / "secret").write_bytes((pristine_bundle / "onnx" / "decoder.data").read_bytes())
    change(snapshot / "onnx" / "decoder.data", snapshot.parents[1])
    for check in (open_bundle, verify_bundle):
        with pytest.raises(ArtifactError, match="is a symbolic link; only links of the hub's cache"):
            check(snapshot)


@pytest.mark.parametrize("name", ["video", "snapshots/main", "models--acme--video/snapshots/main", "blobs"])
def test_links_of_a_folder_that_only_looks_like_a_cache_stay_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    moved = bundle.rename(tmp_path / name)
    digest = "a" * 64
    (moved.parents[1] / "blobs").mkdir(exist_ok=True)
    (moved / "config.json").rename(moved.parents[1] / "blobs" / digest)
    (moved / "config.json").symlink_to(f"../../blobs/{digest}")
    with pytest.raises(ArtifactError, match="symbolic link"):
        open_bundle(moved)


def test_engines_get_a_bundle_without_links_as_it_is(bundle: Path) -> None:
    with real_files(bundle, ONNX_FILES) as folder_:
        assert folder_ == bundle


@pytest.mark.parametrize("stranger", ["onnx/._w", "onnx/.DS_Store", "onnx/.gitattributes"])
def test_engines_get_no_stranger(bundle: Path, stranger: str) -> None:
    """A graph could have its weights in such a file, which neither ``open`` nor ``verify`` reads."""
    add(bundle / stranger)
    with real_files(bundle, ONNX_FILES) as staged:
        assert staged != bundle
        assert sorted(path.name for path in (staged / "onnx").iterdir()) == sorted(map(os.path.basename, ONNX_FILES))
        assert all((staged / name).samefile(bundle / name) for name in ONNX_FILES)
    assert not staged.exists()


def test_a_stranger_that_engines_could_read_is_named_where_no_hard_link_can_be_made(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(bundle / "onnx" / "._w")
    monkeypatch.setattr("blip3v.bundle.hub_links.os.link", no_hard_links)
    with pytest.raises(ArtifactError, match=r"contains onnx/\._w, which .*Invalid cross-device link.*delete it"):
        real_files(bundle, ONNX_FILES).__enter__()
    assert not list(bundle.parent.glob(".blip3v-*"))


def test_hard_links_may_be_made_beside_the_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(bundle / "onnx" / "._w")
    monkeypatch.setattr("blip3v.bundle.hub_links.tempfile.gettempdir", lambda: "/proc")
    with real_files(bundle, ONNX_FILES) as staged:
        assert staged.parent == bundle.parent
    assert not staged.exists()


def test_engines_get_hard_links_that_are_gone_afterwards(pristine_bundle: Path, tmp_path: Path) -> None:
    snapshot = as_snapshot(pristine_bundle, tmp_path / "hub", shared=True)
    with real_files(snapshot, ["onnx/decoder.onnx", "onnx/decoder.data"]) as staged:
        assert sorted(path.name for path in staged.rglob("*.*")) == ["decoder.data", "decoder.onnx"]
        for path in (staged / "onnx").iterdir():
            assert not path.is_symlink()
            assert path.samefile(snapshot / "onnx" / path.name)
    assert not staged.exists()


def test_without_a_temporary_folder_on_the_same_disk_the_repository_has_room(
    pristine_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = as_snapshot(pristine_bundle, tmp_path / "hub")
    monkeypatch.setattr("blip3v.bundle.hub_links.tempfile.gettempdir", lambda: "/proc")
    with real_files(snapshot, ["onnx/decoder.data"]) as staged:
        assert staged.parent == snapshot.parents[1]
        assert (staged / "onnx" / "decoder.data").stat().st_nlink == 2
    assert sorted(path.name for path in snapshot.parents[1].iterdir()) == ["blobs", "refs", "snapshots"]


def no_hard_links(*_: object, **__: object) -> None:
    raise OSError(18, "Invalid cross-device link")


def test_where_no_hard_link_can_be_made_a_refusal_says_what_to_do(
    pristine_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = as_snapshot(pristine_bundle, tmp_path / "hub")
    monkeypatch.setattr("blip3v.bundle.hub_links.os.link", no_hard_links)
    with real_files(snapshot, ONNX_FILES) as given:
        assert given == snapshot
    with (
        pytest.raises(ArtifactError, match=r"Invalid cross-device link.*cp -rL .*snapshots.* my-bundle"),
        real_files(snapshot, ONNX_FILES),
    ):
        raise BackendError("opening onnx/decoder.onnx: outside the base directory")
    with pytest.raises(OutOfMemoryError), real_files(snapshot, ONNX_FILES):
        raise OutOfMemoryError("no memory")
    assert not list(snapshot.parents[1].glob(".blip3v-*"))
