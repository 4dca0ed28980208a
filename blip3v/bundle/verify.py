"""Verifying a bundle: hashes every file, including the large ones that opening does not, with a result for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blip3v.bundle import layout
from blip3v.bundle.manifest import FileEntry, Manifest
from blip3v.bundle.reader import open_bundle
from blip3v.bundle.scan import hash_file, scan
from blip3v.errors import Blip3vError
from blip3v.folders import check_bundle

__all__ = ["FileResult", "VerifyReport", "verify_bundle"]

Status = Literal["ok", "changed", "missing", "extra"]


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """The result for one file."""

    name: str
    status: Status
    detail: str  # what differs; empty if nothing does


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Results for all files, and anything else that keeps the bundle from opening."""

    files: tuple[FileResult, ...]
    problem: str | None  # why the bundle does not open although no file has changed

    @property
    def ok(self) -> bool:
        """Whether the bundle is as it was written."""
        return self.problem is None and not self.bad

    @property
    def bad(self) -> tuple[FileResult, ...]:
        """The files that are not as they were written."""
        return tuple(result for result in self.files if result.status != "ok")


def verify_bundle(path: Path) -> VerifyReport:
    """Hashes every file that the manifest lists, and looks for files that it does not list.

    Raises:
        ArtifactMissingError: there is no bundle.
        ArtifactVersionError: written with a schema that this version does not read.
        ArtifactError: the manifest cannot be read, or the folder contains links, foreign folders or too many files.
    """
    check_bundle(path)
    sizes = scan(path)
    manifest = Manifest.load(path / layout.MANIFEST)
    results = [_compare(path, name, entry, sizes.get(name)) for name, entry in manifest.files.items()]
    for name in sorted(sizes.keys() - manifest.files.keys() - {layout.MANIFEST}):
        if not layout.is_derived(name):
            results.append(FileResult(name=name, status="extra", detail="the manifest does not list it"))
    report = VerifyReport(files=tuple(results), problem=None)
    if not report.ok:
        return report
    try:
        bundle = open_bundle(path)
        bundle.embeddings()
        _ = bundle.tokenizer
    except Blip3vError as error:
        return VerifyReport(files=report.files, problem=str(error))
    return report


def _compare(path: Path, name: str, entry: FileEntry, size: int | None) -> FileResult:
    if size is None:
        return FileResult(name=name, status="missing", detail=f"{entry.size_bytes} bytes were written")
    if size != entry.size_bytes:
        return FileResult(name=name, status="changed", detail=f"{size} bytes, {entry.size_bytes} were written")
    digest = hash_file(path / name)
    if digest != entry.sha256:
        return FileResult(
            name=name, status="changed", detail=f"sha256 {digest[:12]}..., {entry.sha256[:12]}... was written"
        )
    return FileResult(name=name, status="ok", detail="")
