"""A hub id wherever a model is named: refused in scripts, asked at a terminal, downloaded with --download."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_bundle import write_fake_bundle
from hub_server import COMMIT, Hub, serving
from huggingface_hub import constants

from blip3v import cli
from blip3v.errors import ArtifactError

ID = "acme/video"
OF_BUNDLES = ("ask", "inspect", "verify", "bench")
VERBS = {
    "export": ["export", "-m", ID],
    "convert": ["convert", ID],
    "train": ["train", "--recipe", "tiny-tokenlearner", "--init", ID],
    "ask": ["ask", "examples/turn.mp4", "Which way does it turn?", "-m", ID],
    "inspect": ["inspect", ID],
    "verify": ["verify", ID],
    "eval": ["eval", "-m", ID],
    "bench": ["bench", ID],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a bundle."""
    bundle = write_fake_bundle(tmp_path_factory.mktemp("hub") / "bundle")
    files = {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with serving(Hub(files)) as served:
        yield served


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Of a process that sees this hub and an empty cache."""
    hub.requests.clear()
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return own | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.endpoint}


def run(args: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blip3v", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def run_at_a_terminal(args: list[str], environment: dict[str, str], answer: str) -> tuple[int, str]:
    """The exit code, and what the terminal shows."""
    terminal, theirs = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    # Not pty.fork(): in a process with the threads of an engine its child may crash before it becomes another program.
    child = subprocess.Popen(
        [sys.executable, "-m", "blip3v", *args], env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.write(terminal, answer.encode() + b"\n")
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # the terminal is gone
        pass
    os.close(terminal)
    return child.wait(), shown.decode()


@pytest.mark.parametrize("args", VERBS.values(), ids=VERBS)
def test_a_script_is_told_what_to_run(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`-m Salesforce/...` was "does not exist", although that is how everybody names these models."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(sys, "argv", ["blip3v", *args])
    assert cli._run(args) == 3
    captured = capsys.readouterr()
    question = " 'Which way does it turn?'" if args[0] == "ask" else ""
    typed = " ".join(arg for arg in args if " " not in arg).replace("turn.mp4", f"turn.mp4{question}")
    if args[0] in OF_BUNDLES:
        make_one = "; to make a bundle of a checkpoint run: blip3v export -m acme/video --download"
        to_do = f"to download it, if it is a bundle, run: blip3v {typed} --download{make_one}"
    else:
        to_do = f"to download it run: blip3v {typed} --download"
    assert captured.err == (
        f"error: acme/video is neither a local path nor a model in the hub's cache {tmp_path}/hub; {to_do}\n"
    )
    assert captured.out == ""


@pytest.mark.parametrize("args", VERBS.values(), ids=VERBS)
def test_each_command_says_which_kind_it_needs(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`ask -m CHECKPOINT --download` downloaded 8 GB before it said that it needs a bundle."""
    asked: list[str | None] = []

    def note(name: Path, *, kind: str | None, **_: object) -> Path:
        asked.append(kind)
        raise ArtifactError("noted")

    monkeypatch.setattr("blip3v.commands.local_models.resolve", note)
    assert cli._run([*args, "--download"]) == 3
    assert asked == [None if args[0] == "eval" else "bundle" if args[0] in OF_BUNDLES else "checkpoint"]


def test_convert_takes_the_tokenizer_of_a_hub_id_if_it_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def note(name: Path, *, kind: str | None, **_: object) -> Path:
        asked.append((str(name), kind))
        return name

    monkeypatch.setattr("blip3v.commands.local_models.resolve", note)
    (tmp_path / "mine.pt").touch()
    for source in (tmp_path / "mine.pt", tmp_path):
        assert cli._run(["convert", str(source), "--tokenizer", ID]) == 3
    assert asked == [(str(tmp_path / "mine.pt"), "checkpoint"), (ID, "tokenizer"), (str(tmp_path), "checkpoint")]


def test_download_needs_no_terminal_and_keeps_stdout_clean(environment: dict[str, str], hub: Hub) -> None:
    done = run(["inspect", ID, "--download", "--json"], environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"].endswith(f"models--acme--video/snapshots/{COMMIT}")
    assert done.stderr.startswith("acme/video, revision main, commit 89abcdef0123\nsize: ")
    assert "licence: cc-by-nc-4.0 (no commercial use)\ndestination: " in done.stderr
    again = run(["verify", ID], environment | {"HF_HUB_OFFLINE": "1"})
    assert (again.returncode, again.stderr) == (0, "")
    assert "all 11 files are unchanged" in again.stdout


@pytest.mark.parametrize(
    ("answer", "exit_code", "last"),
    [("n", 3, "was not downloaded, as you chose"), ("", 3, "as you chose"), ("y", 0, "all 11 files are unchanged")],
    ids=["no", "enter", "yes"],
)
def test_at_a_terminal_the_user_is_asked(
    environment: dict[str, str], hub: Hub, answer: str, exit_code: int, last: str
) -> None:
    code, shown = run_at_a_terminal(["verify", ID], environment, answer)
    assert (code, last in shown) == (exit_code, True), shown
    assert "licence: cc-by-nc-4.0 (no commercial use)" in shown
    assert "Download it? [y/N]" in shown
    assert bool(hub.downloads()) == (answer == "y")
    assert ("embeddings.safetensors: 100%" in shown) == (answer == "y")


def test_a_mistyped_path_is_not_looked_up_on_the_hub(
    environment: dict[str, str], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme").mkdir()
    monkeypatch.chdir(tmp_path)
    code, shown = run_at_a_terminal(
        ["verify", ID], environment | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}, "y"
    )
    assert (code, "-m blip3v verify acme/video --download" in shown) == (3, True), shown
    assert hub.requests == []


@pytest.mark.parametrize("typed", ["./acme/video", "acme/video/", "acme//video"])
def test_what_was_typed_as_a_path_is_no_hub_id(
    environment: dict[str, str], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    """`./runs/model --download` in the wrong folder fetched somebody's runs/model."""
    monkeypatch.chdir(tmp_path)
    done = run(["verify", typed, "--download"], environment | {"PYTHONPATH": str(Path(cli.__file__).parents[1])})
    assert done.returncode == 3
    assert f"{tmp_path}/acme/video does not exist" in done.stderr
    assert hub.requests == []
