"""Publication is atomic, whatever happens while the files are written."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import fake_manifest, write_fake_bundle, write_files
from safetensors import SafetensorError

from blip3v.bundle import BundleWriter, embeddings, open_bundle
from blip3v.errors import ArtifactError, ArtifactMissingError, Blip3vError, UsageError
from blip3v.publishing import write_file


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def write_but(target: Path, change: Callable[[Path], object], *, force: bool = False) -> None:
    """Writes a bundle and modifies its folder before publication."""
    with BundleWriter(target, force=force) as writer:
        write_files(writer.path)
        change(writer.path)
        writer.publish(fake_manifest())


def fail_with(error: type[BaseException]) -> Callable[[Path], object]:
    def fail(_: Path) -> None:
        raise error

    return fail


def opset(bundle: Path) -> int:
    return open_bundle(bundle).manifest.opset


def test_a_published_bundle_opens_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "deep" / "bundle")
    assert path == tmp_path / "deep" / "bundle"
    assert opset(path) == 24
    assert names(path.parent) == ["bundle"]


def test_a_bundle_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = write_fake_bundle(tmp_path / "bundle")
    finally:
        os.umask(before)
    for entry in (path, *path.rglob("*")):
        assert stat.S_IMODE(entry.stat().st_mode) == (0o755 if entry.is_dir() else 0o644), entry


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit], ids=["error", "ctrl-c", "exit"])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_but(tmp_path / "bundle", fail_with(error))
    assert names(tmp_path) == []


def test_nothing_is_left_without_publish(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        write_files(writer.path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["tokenizer.json", "onnx/decoder.onnx", "README.md"])
def test_an_incomplete_bundle_is_not_published(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactMissingError, match=name):
        write_but(tmp_path / "bundle", lambda folder: (folder / name).unlink())
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["notes.txt", "reports/bench.json", "onnx/decoder.bin"])
def test_a_file_that_does_not_belong_in_a_bundle_is_not_published(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="does not belong there"):
        write_but(tmp_path / "bundle", lambda folder: (folder / name).write_text("x"))
    assert names(tmp_path) == []


def test_the_accuracy_report_of_an_export_is_published_and_not_hashed(tmp_path: Path) -> None:
    write_but(tmp_path / "bundle", lambda folder: (folder / "reports" / "accuracy.json").write_text("{}"))
    assert (tmp_path / "bundle" / "reports" / "accuracy.json").read_text() == "{}"
    assert "reports/accuracy.json" not in open_bundle(tmp_path / "bundle").manifest.files


def test_a_report_can_be_written_later_and_a_killed_attempt_leaves_a_bundle_that_opens(tmp_path: Path) -> None:
    """A file under another name in reports/ made the bundle unusable."""
    path = write_fake_bundle(tmp_path / "bundle")
    (path / "reports").mkdir(exist_ok=True)
    write_file(path / "reports" / "accuracy.json", "{}")
    (path / "reports" / ".accuracy.json.0123abcd.partial").write_text("{")
    open_bundle(path)
    (path / "reports" / ".notes.json.0123abcd.partial").write_text("{")
    with pytest.raises(ArtifactError, match="which its manifest does not list"):
        open_bundle(path)


def test_a_bundle_that_would_not_open_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json"):
        write_but(tmp_path / "bundle", lambda folder: (folder / "config.json").write_text("{}"))
    assert names(tmp_path) == []


def test_a_writer_publishes_once_and_inside_its_block(tmp_path: Path) -> None:
    writer = BundleWriter(tmp_path / "bundle")
    with pytest.raises(UsageError, match="with block"):
        _ = writer.path
    with writer:
        write_files(writer.path)
        writer.publish(fake_manifest())
        with pytest.raises(UsageError, match="before publish"):
            writer.publish(fake_manifest())
    assert opset(tmp_path / "bundle") == 24


def test_an_existing_bundle_stays_without_force(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="replace a bundle with `force=True`"):
        write_fake_bundle(tmp_path / "bundle", opset=25)
    assert opset(tmp_path / "bundle") == 24
    assert names(tmp_path) == ["bundle"]


def test_force_replaces_at_the_moment_of_publication(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    (path / "engines").mkdir()
    with BundleWriter(path, force=True) as writer:
        write_files(writer.path)
        assert opset(path) == 24
        writer.publish(fake_manifest())
    assert not (path / "engines").exists()
    write_fake_bundle(path, force=True, opset=25)
    assert opset(path) == 25
    assert names(tmp_path) == ["bundle"]


def test_with_force_the_old_bundle_survives_a_failure(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    with pytest.raises(ZeroDivisionError):
        write_but(path, fail_with(ZeroDivisionError), force=True)
    assert opset(path) == 24
    assert names(tmp_path) == ["bundle"]


def test_with_force_the_old_bundle_survives_a_failed_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.parent.name.endswith("partial") and target.name == "bundle" and self.name != "old":
            raise OSError("disk on fire")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ArtifactError, match="disk on fire"):
        write_fake_bundle(path, force=True, opset=25)
    assert opset(path) == 24
    assert names(tmp_path) == ["bundle"]


def test_a_damaged_bundle_can_be_replaced(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    (path / "manifest.json").write_text("{")
    (path / "config.json").unlink()
    write_fake_bundle(path, force=True, opset=25)
    assert opset(path) == 25


@pytest.mark.parametrize(
    "content",
    [["thesis.tex"], ["manifest.json", "thesis.tex"], ["config.json"]],
    ids=["foreign", "with-a-manifest", "no-manifest"],
)
def test_a_folder_that_is_not_a_bundle_is_never_deleted(tmp_path: Path, content: list[str]) -> None:
    path = tmp_path / "work"
    path.mkdir()
    for name in content:
        (path / name).write_text("years of work")
    with pytest.raises(UsageError, match="is not a bundle"):
        write_fake_bundle(path, force=True)
    assert names(path) == sorted(content)
    assert names(tmp_path) == ["work"]


def test_an_empty_folder_is_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(UsageError, match="exists"):
        write_fake_bundle(tmp_path / "bundle")
    write_fake_bundle(tmp_path / "bundle", force=True)
    assert opset(tmp_path / "bundle") == 24


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_target_that_is_not_a_folder_stays(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(write_fake_bundle(tmp_path / "real") if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a folder"):
        write_fake_bundle(target, force=True)
    assert target.is_symlink() or target.read_text() == "mine"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left"), OSError("98304 requested and 37277 written")],
    ids=["system", "numpy"],
)
def test_a_disk_that_fills_up_while_the_bundle_is_written_is_named(error: OSError, tmp_path: Path) -> None:
    """The export ended with "98304 requested and 37277 written"."""
    says = rf"bundle cannot be written: the disk is full: .* free at {re.escape(str(tmp_path))}; choose"
    with pytest.raises(ArtifactError, match=says), BundleWriter(tmp_path / "bundle"):
        raise error
    assert names(tmp_path) == []


def test_a_full_disk_is_recognised_in_the_words_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own, so that a full disk was a traceback."""

    def save(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(embeddings, "save_file", save)
    with pytest.raises(OSError, match="No space left") as full:
        embeddings.write_embeddings(tmp_path / "x", np.zeros((2, 2), np.float32))
    assert full.value.errno == errno.ENOSPC


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_fake_bundle(tmp_path / "file" / "bundle")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import fake_bundle
import blip3v.bundle.writer as writer_module
if sys.argv[3] == "between-renames":
    real = Path.rename
    def rename(self, target):
        if self.parent.name.endswith("partial"):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)
    Path.rename = rename
else:
    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    writer_module.open_bundle = kill
fake_bundle.write_fake_bundle(Path(sys.argv[1]), force=True, opset=25)
"""


def write_and_be_killed(target: Path, when: str) -> None:
    arguments = [sys.executable, "-c", KILLED, str(target), str(Path(__file__).parent), when]
    assert subprocess.run(arguments, check=False, timeout=60).returncode == -signal.SIGKILL


def test_a_kill_leaves_no_bundle_and_the_next_writer_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    write_and_be_killed(target, "before-publication")
    assert not target.exists()
    assert len(names(tmp_path)) == 1
    write_fake_bundle(target)
    assert names(tmp_path) == ["bundle"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    target = write_fake_bundle(tmp_path / "bundle")
    write_and_be_killed(target, "between-renames")
    assert not target.exists()
    with pytest.raises(UsageError, match="exists"):
        write_fake_bundle(target)
    with pytest.raises(ZeroDivisionError), BundleWriter(target, force=True):
        raise ZeroDivisionError
    assert opset(target) == 24
    assert names(tmp_path) == ["bundle"]


def test_only_abandoned_siblings_are_removed(tmp_path: Path) -> None:
    mine = [
        ".bundle.0123abcd.partial",
        ".bundle.old",
        ".bundle.0123abcd.blip3v-partial.txt",
        ".other.0123abcd.blip3v-partial",
    ]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / ".bundle.89abcdef.blip3v-partial").mkdir()
    with BundleWriter(tmp_path / "bundle") as alive:
        write_files(alive.path)
        write_fake_bundle(tmp_path / "bundle", opset=25)
        assert alive.path.is_dir()
        with pytest.raises(UsageError, match="exists"):
            alive.publish(fake_manifest())
    assert names(tmp_path) == sorted([*mine, "bundle"])
    assert opset(tmp_path / "bundle") == 25


@pytest.mark.parametrize("force", [False, True], ids=["no-force", "force"])
def test_concurrent_writers_never_mix(tmp_path: Path, force: bool) -> None:
    """Without force one wins and the others fail; with force the last wins. Either way one complete bundle is left."""
    target, errors, start = tmp_path / "bundle", [], threading.Barrier(4)

    def write(number: int) -> None:
        start.wait()
        try:
            write_fake_bundle(target, force=force, opset=20 + number)
        except Blip3vError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert opset(target) in range(20, 24)
    assert names(tmp_path) == ["bundle"]
    assert len(errors) == (0 if force else 3)
    assert all(isinstance(error, UsageError) for error in errors)


def test_the_manifest_holds_size_and_hash_of_every_file(pristine_bundle: Path) -> None:
    values = json.loads((pristine_bundle / "manifest.json").read_text())
    on_disk = {str(path.relative_to(pristine_bundle)): path.stat().st_size for path in pristine_bundle.rglob("*.*")}
    del on_disk["manifest.json"]
    assert {name: entry["size_bytes"] for name, entry in values["files"].items()} == on_disk
    for name, entry in values["files"].items():
        shown = subprocess.run(["sha256sum", pristine_bundle / name], capture_output=True, text=True, check=True)
        assert shown.stdout.split()[0].lstrip("\\") == entry["sha256"]
