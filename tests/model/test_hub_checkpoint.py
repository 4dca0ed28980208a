"""A released checkpoint from the hub: what is downloaded is all that reading and exporting it take."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import Hub, connect, serving
from small_checkpoint import assert_same_weights

from blip3v.export.source import folder_source
from blip3v.hub import resolve
from blip3v.model.checkpoint import open_checkpoint


def test_a_released_checkpoint_from_the_hub_is_the_one_in_a_folder(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in released.iterdir()}
    with serving(Hub({**files, "modeling_xgenmm.py": b"code"})) as hub:
        connect(hub.endpoint, tmp_path / "hub", monkeypatch)
        folder = resolve("acme/video", download=True)
    assert (folder / "config.json").is_symlink()
    local, downloaded = open_checkpoint(released), open_checkpoint(folder)
    assert downloaded.config == local.config
    assert downloaded.tokenizer_json == local.tokenizer_json
    assert [file.name for file in downloaded.hashed_files] == [file.name for file in local.hashed_files]
    assert_same_weights(downloaded.weights, local.weights)
    assert folder_source(folder).provenance.name == "video@89abcdef0123"
