"""The command to run next, after a result: it can be pasted as it is, and the files that it names exist."""

from __future__ import annotations

import os
from pathlib import Path

from blip3v.bundle.manifest import Manifest
from blip3v.bundle.precision import DEFAULT_PRECISION
from blip3v.bundle.targets import is_tensorrt
from blip3v.commands.program import command_line
from blip3v.folders import example_clip

__all__ = ["after_build", "after_export", "ask_film", "shorter"]

_FILM_QUESTION = "Which way does the red circle turn?"  # about the example clip, to a model of synthetic films
_ANY_QUESTION = "What happens in this video?"
_NEW_CLIP = Path("films-test-0") / "test-00000.mp4"  # what `blip3v data` writes first
_DEMO_BUNDLE = Path("blip3v-demo") / f"blip3v-tiny-tokenlearner-32tok-{DEFAULT_PRECISION}"


def after_export(manifest: Manifest, path: Path) -> str:
    """The command to run next on a new bundle: ``after_build``, unless TensorRT has to build its engines first."""
    return command_line("build", str(path)) if is_tensorrt(manifest.target) else after_build(manifest, path)


def after_build(manifest: Manifest, path: Path, *options: str) -> str:
    """The command to run next on a bundle that can be opened; untrained weights are only good for benchmarks.

    Args:
        manifest: the bundle's.
        path: the bundle.
        options: that ``ask`` and ``bench`` both take, to be added.
    """
    if manifest.source.random_init or not manifest.source.trained:
        return command_line("bench", str(path), *options)
    clip = example_clip()
    if clip is not None:
        question = _FILM_QUESTION if manifest.model == "tiny" else _ANY_QUESTION
        return command_line("ask", shorter(clip), question, "-m", str(path), *options)
    ask = command_line("ask", str(_NEW_CLIP), _ANY_QUESTION, "-m", str(path), *options)
    return ask if _NEW_CLIP.is_file() else f"{command_line('data', '--count', '1')} && {ask}"


def ask_film(clip: Path, question: str) -> str:
    """The command that asks a bundle of this folder about a synthetic film; without one, it is exported first."""
    made = (*sorted(Path().glob("blip3v-tiny-*")), _DEMO_BUNDLE)
    bundle = next((path for path in made if (path / "manifest.json").is_file() and "-random" not in path.name), None)
    ask = command_line("ask", str(clip), question, "-m", str(bundle or _DEMO_BUNDLE.name))
    return ask if bundle is not None else f"{command_line('export')} && {ask}"


def shorter(path: Path) -> str:
    """The path as seen from the current folder, if that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive on Windows
        return str(path)
    return min(relative, str(path), key=len)
