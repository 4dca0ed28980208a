"""A path that is not what a command needs is called what it is, with the command that takes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from blip3v.errors import ArtifactError, ArtifactMissingError
from blip3v.folders import MODEL_FILES, check_bundle, check_checkpoint, example_clip, is_model_folder, kind_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def write(folder: Path, *names: str, config: object = None) -> None:
    """Writes empty files; ``config`` is the content of config.json."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config) if name == "config.json" else "")


def make(kind: str, path: Path) -> None:
    if kind in ("missing",):
        return
    if kind == "file":
        path.write_text("")
    elif kind == "model folder":
        write(path, *MODEL_FILES, config={"schema_version": 2})
    elif kind == "released":
        write(path, "config.json", "model.safetensors.index.json", config={"model_type": "xgenmm"})
    elif kind == "another model":
        write(path, "config.json", config={"model_type": "llava"})
    elif kind == "bundle":
        write(path, "manifest.json", "config.json", "onnx/decoder.onnx", config={"schema_version": 2})
    elif kind == "headless":
        write(path, "config.json", "onnx/decoder.onnx", config={"schema_version": 2})
    elif kind == "run":
        write(path, "log.jsonl", "model/config.json", config={"schema_version": 2})
    elif kind == "films":
        write(path, "questions.json", "a.mp4")
    elif kind == "bundles":
        write(path, "one/manifest.json", "two/manifest.json")
    elif kind == "hidden":
        write(path, ".DS_Store")
    else:
        write(path, *"hgfedcba") if kind == "other" else path.mkdir()


# kind -> what is said where a bundle was expected, and where a checkpoint was expected (None: it is one)
SAID: dict[str, tuple[str | None, str | None]] = {
    "missing": ("x does not exist; a bundle is a folder with a manifest.json", "x does not exist; allowed: a model"),
    "file": ("x is not a bundle: it is a file; a bundle is", "x is a file that does not end in .pt or .pth; allowed"),
    "empty": ("x is not a bundle: it is an empty folder; a bundle is", "x is an empty folder; allowed: a model"),
    "hidden": ("it is an empty folder", "is an empty folder"),
    "bundle": (None, "x is a bundle, whose graphs cannot be read back; allowed"),
    "headless": ("x is a bundle that lacks its manifest.json; copy the bundle again", "lacks its manifest.json"),
    "model folder": ("it is a model folder; make a bundle of it with `blip3v export -m ", None),
    "released": ("it is a released checkpoint; make a bundle of it with `blip3v export -m ", None),
    "another model": ("it contains config.json; a bundle is", "contains config.json, with model_type 'llava'; allowed"),
    "run": ("make a bundle of its model with `blip3v export -m ", "training run, whose model is "),
    "films": ("it is a folder of films; a bundle is", "is a folder of films; allowed"),
    "bundles": ("it contains one, two; the bundles in it are ", "contains one, two and no config.json; allowed"),
    "other": ("it contains a, b, c, d, e, f, ...; a bundle", "contains a, b, c, d, e, f, ... and no config.json"),
}


@pytest.mark.parametrize("kind", SAID)
def test_a_wrong_folder_is_called_what_it_is(kind: str, tmp_path: Path) -> None:
    """`ask -m` with a model folder said "move it away" about a file in it."""
    path = tmp_path / "x"
    make(kind, path)
    for check, says in zip((check_bundle, check_checkpoint), SAID[kind], strict=True):
        if says is None:
            check(path)
            continue
        with pytest.raises(ArtifactError) as refused:
            check(path)
        assert says in str(refused.value)
        assert str(refused.value).startswith(str(path))


def test_a_broken_config_is_left_to_the_reader_of_model_folders(tmp_path: Path) -> None:
    make("model folder", tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text("{")
    assert kind_of(tmp_path / "x") == "model folder"
    assert is_model_folder(tmp_path / "x")


def test_only_what_a_command_takes_is_allowed(tmp_path: Path) -> None:
    make("released", tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"checkpoint; allowed: a model folder .*, a bundle from .*, or a hub"):
        check_checkpoint(tmp_path / "x", kinds=("model folder", "bundle"))
    with pytest.raises(ArtifactMissingError):
        check_checkpoint(tmp_path / "\N{SNOWMAN}" / ("n" * 300))


def test_the_example_clip_is_in_the_checkout_and_in_a_wheel() -> None:
    """An installed package had no clip that a "next:" line could name."""
    assert example_clip() == ROOT / "examples" / "turn.mp4"
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"examples": "blip3v/examples"}
