"""What a command advises to run next can be pasted: the program as it was started, and files that exist."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fake_bundle import fake_manifest, write_fake_bundle

from blip3v.bench import default_film
from blip3v.commands import demo, next_command
from blip3v.commands.failure import as_typed
from blip3v.commands.next_command import after_export, ask_film
from blip3v.commands.program import program
from blip3v.errors import ArtifactError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program in the folder ``bin`` of a virtual environment, with which this process was started."""
    monkeypatch.chdir(tmp_path)
    path = Path(".venv") / "bin" / "blip3v"
    path.parent.mkdir(parents=True)
    path.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(path), "export"])
    monkeypatch.setenv("PATH", "/nowhere")
    return path


def test_a_program_that_is_not_on_the_path_is_named_as_it_was_typed(script: Path) -> None:
    """`make demo` advised `blip3v ask`, which a shell without the activated environment does not find."""
    assert program() == [".venv/bin/blip3v"]
    error = ArtifactError("there is no bundle", remedy="make one with `blip3v export`")
    assert as_typed(error) == "there is no bundle; make one with `.venv/bin/blip3v export`"


def test_a_program_on_the_path_is_named_by_its_name(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(script.parent.absolute()))
    assert program() == ["blip3v"]
    monkeypatch.setattr(sys, "argv", [str(script.absolute())])
    assert program() == ["blip3v"]


def test_a_module_is_run_with_the_same_python(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "blip3v", "verify", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert f"made by `{sys.executable} -m blip3v export`" in done.stderr


def test_another_program_advises_the_short_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert program() == ["blip3v"]


@pytest.mark.parametrize(
    ("model", "question"),
    [("tiny", "Which way does the red circle turn?"), ("xgen-mm-vid", "What happens in this video?")],
)
def test_a_bundle_is_asked_about_a_clip_that_exists(
    model: str, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was `ask VIDEO "QUESTION"`."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(after_export(dataclasses.replace(fake_manifest(), model=model), Path("my bundle")))
    assert words[:2] + words[-2:] == ["blip3v", "ask", "-m", "my bundle"]
    assert (tmp_path / words[2]).is_file()
    assert words[3] == question
    assert (question in [item.question for item in default_film().questions]) == (model == "tiny")


def test_without_examples_a_clip_is_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(next_command, "example_clip", lambda: None)
    assert after_export(fake_manifest(), Path("b")) == (
        "blip3v data --count 1 && blip3v ask films-test-0/test-00000.mp4 'What happens in this video?' -m b"
    )
    clip = tmp_path / "films-test-0" / "test-00000.mp4"
    clip.parent.mkdir()
    clip.touch()
    assert after_export(fake_manifest(), Path("b")).startswith("blip3v ask films-test-0/test-00000.mp4 ")


def test_films_are_asked_with_a_bundle_that_exists_or_is_exported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data` advised `ask` without a bundle, which fails unless the folder happens to contain exactly one."""
    monkeypatch.chdir(tmp_path)
    assert ask_film(Path("a.mp4"), "Up?") == (
        "blip3v export && blip3v ask a.mp4 'Up?' -m blip3v-tiny-tokenlearner-32tok-fp16"
    )
    assert demo._BUNDLE == next_command._DEMO_BUNDLE
    write_fake_bundle(demo._BUNDLE)
    assert ask_film(Path("a.mp4"), "Up?") == f"blip3v ask a.mp4 'Up?' -m {demo._BUNDLE}"
    (tmp_path / "blip3v-tiny-gttm-128tok-random-fp16").mkdir()
    write_fake_bundle(tmp_path / "blip3v-tiny-gttm-128tok-fp16")
    assert ask_film(Path("a.mp4"), "Up?").endswith(" -m blip3v-tiny-gttm-128tok-fp16")


def test_help_and_messages_name_no_placeholder() -> None:
    """A line that cannot be pasted must not come back."""
    for path in (ROOT / "blip3v" / "commands").glob("*.py"):
        assert not re.search(r"next: .*(VIDEO|QUESTION|BUNDLE)", path.read_text("utf-8")), path
