"""A bundle with schema 1 is refused with the command that exports it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blip3v.bundle import open_bundle
from blip3v.errors import ArtifactVersionError


def refused(bundle: Path, **changes: Any) -> str:
    """The error for a manifest with schema 1, in which ``precision`` was a word and ``memory`` a section."""
    values = json.loads((bundle / "manifest.json").read_text())
    values |= {"schema_version": 1, "precision": "fp16", "memory": {"weights_bytes": 64, "resident_bytes": 128}}
    values["source"] |= changes.pop("source", {})
    (bundle / "manifest.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(ArtifactVersionError) as caught:
        open_bundle(bundle)
    return str(caught.value).replace(str(bundle), "FOLDER")


def test_a_shipped_model_is_named_by_its_encoder(bundle: Path) -> None:
    message = refused(bundle, source={"name": "tiny-tokenlearner"})
    line = "blip3v export --encoder tokenlearner --frames 8 --precision fp16 -o FOLDER --force"
    assert message == f"FOLDER/manifest.json has schema_version 1; this blip3v reads 2; export it again with `{line}`"


def test_another_model_is_named_by_its_folder(bundle: Path) -> None:
    message = refused(bundle, source={"name": "mine"}, precision="fp32")
    assert "`blip3v export -m mine --frames 8 --precision fp32 -o FOLDER --force`" in message
    assert message.endswith("with -m pointing to where the model folder mine is now")


def test_random_weights_need_their_sizes(bundle: Path) -> None:
    message = refused(bundle, source={"random_init": True, "trained": False}, encoder="gttm", num_video_tokens=128)
    options = "--preset tiny --init random --encoder gttm --frames 8 --tokens 128 --precision fp16"
    assert message.endswith(f"export it again with `blip3v export {options} -o FOLDER --force`")


def test_a_bundle_of_bench_is_left_to_bench(bundle: Path) -> None:
    assert "delete it and run `blip3v bench`" in refused(bundle, source={"trained": False})


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "x; rm -rf ~"},
        {"encoder": None},
        {"source": {"name": "-o"}},
        {"source": {"name": "\u001b[31m"}},
        {"num_frames": "many"},
        {"precision": {"a": 1}},
    ],
    ids=str,
)
def test_what_blip3v_did_not_write_is_not_repeated(bundle: Path, changes: dict[str, Any]) -> None:
    assert refused(bundle, **changes).endswith("this blip3v reads 2; run `blip3v export` again")
