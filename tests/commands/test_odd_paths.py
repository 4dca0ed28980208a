"""Folders whose names are not valid UTF-8, on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

CLIP = Path(__file__).parents[2] / "examples" / "turn.mp4"
NAME = os.fsdecode(b"caf\xe9")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse to make such a folder")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_config()
    written = write_bundle(tmp_path_factory.mktemp("odd") / "cafe", config, Weights.random(config.text))
    return written.rename(written.with_name(NAME))


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blip3v", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONUTF8": "1"})


def test_inspect_works(bundle: Path) -> None:
    """A UnicodeEncodeError when the result was printed."""
    done = run("inspect", bundle)
    assert (done.returncode, done.stderr[:6]) == (0, "next: "), done.stderr
    assert "caf\\udce9" in done.stderr


def test_json_names_the_folder(bundle: Path) -> None:
    done = run("verify", bundle, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert NAME in json.dumps(json.loads(done.stdout), ensure_ascii=False)


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_folder_that_is_not_there(bundle: Path, verb: str) -> None:
    done = run(verb, bundle.parent / f"{NAME}-2", "--json")
    assert done.returncode == 3
    assert "caf\\udce9-2" in done.stderr
    assert f"{NAME}-2" in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr


def test_ask_says_that_engines_open_no_such_path(bundle: Path) -> None:
    """A traceback, and the fallback's lines on stdout before it."""
    done = run("ask", CLIP, "Why?", "-m", bundle, "--json")
    assert done.returncode == 2
    assert "is not valid UTF-8, and inference engines open no other paths; rename the folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert "EP Error" not in done.stdout
