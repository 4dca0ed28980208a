"""Types the README as a newcomer does: block by block, in one shell, in a fresh clone with nothing but its own `.venv`.

The environment holds PATH and HOME only, and PATH does not lead to the Python that runs this test. Not covered, since
tests use no network: `pip` and the first half of the make targets, which install. The clone's `.venv` is a real one
whose packages are those of this environment, marked as installed. What takes minutes is typed as a dry run; `pytest -m
slow` types it as it stands.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from doc_pages import ROOT, blocks

from blip3v import extras
from blip3v.commands import demo

README = ROOT / "README.md"
BLOCKS = blocks(README)
NOT_RUN = ["needs the released weights", "installs from the network"]
# What the reader brings, and what stands in for it.
BROUGHT = {"film.mp4": "examples/turn.mp4", "runs/mine/model": "blip3v/models/tiny-tokenlearner"}
MADE_BY_DEMO = "blip3v-demo/blip3v-tiny-tokenlearner-32tok-fp16"
PICTURED = "Which way does the red circle turn?"


class Newcomer:
    """A bash in a clone, which keeps its variables and its folder from one line to the next, and stops at an error."""

    def __init__(self, clone: Path, home: Path) -> None:
        self.clone = clone
        self._state = home / "state"
        own = os.path.dirname(sys.executable)
        path = os.pathsep.join(folder for folder in os.environ["PATH"].split(os.pathsep) if folder != own)
        self._environment = {"PATH": path, "HOME": str(home)}
        self._state.write_text(f"cd {shlex.quote(str(clone))}\n")

    def types(self, line: str) -> str:
        """Returns what the line prints to stdout."""
        keep = '{ export -p; echo "cd $(pwd)"; } > "$1"'
        script = f'. "$1"; eval "$2"; {keep}'
        command = ["bash", "--noprofile", "--norc", "-ec", script, "bash", str(self._state), line]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == 0, f"$ {line}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    clone = tmp_path / "blip3v"
    _clone(clone)
    _install(clone)
    for name, stand_in in BROUGHT.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / stand_in).is_dir() else shutil.copy
        copy(ROOT / stand_in, clone / name)
    return Newcomer(clone, tmp_path)


def _clone(clone: Path) -> None:
    """Copies what a commit of the working tree would hold."""
    listing = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():  # the source distribution
        shutil.copytree(ROOT, clone, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__", "blip3v-*"))
        return
    for name in subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and os.path.lexists(ROOT / name):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name, follow_symlinks=False)


def _install(clone: Path) -> None:
    """What `make` does in a clone, without the network."""
    folder = clone / ".venv"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    installed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "shared.pth").write_text("\n".join([str(clone), *installed]))
    command = folder / "bin/blip3v"
    command.write_text(f"#!{folder}/bin/python\nfrom blip3v.cli import main\nmain()\n")
    command.chmod(0o755)
    for stamp in (".installed", ".installed-dev"):
        (folder / stamp).touch()


def test_what_is_not_run_says_why() -> None:
    assert [block.not_run for block in BLOCKS if block.not_run] == NOT_RUN


@pytest.mark.parametrize("for_real", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_the_blocks_run_in_order(newcomer: Newcomer, *, for_real: bool) -> None:
    """After `make demo` the Python example and `ask` did not run as typed: they named a folder that it did not make."""
    answers: dict[str, str] = {}
    for block in BLOCKS:
        if block.not_run:
            continue
        if block.language == "python":
            (newcomer.clone / "example.py").write_text(block.text)
            questions = re.findall(r'ask\(video, "(.*?)"\)', block.text)
            assert newcomer.types("python example.py").splitlines() == [
                _true_answer("turn.mp4", question) for question in questions
            ]
            assert PICTURED in questions
            continue
        for line in block.text.splitlines():
            said = _type(newcomer, line, for_real=for_real)
            if line.startswith("blip3v ask"):
                assert said.strip(), line
                answers.setdefault(shlex.split(line)[3], said.strip())
    assert answers[PICTURED] == _true_answer("turn.mp4", PICTURED) == "up then right"
    assert newcomer.types("which blip3v").strip() == str(newcomer.clone / ".venv/bin/blip3v")
    ran = newcomer.types("python -c 'import blip3v; print(blip3v.__file__)'")
    assert ran.strip() == str(newcomer.clone / "blip3v/__init__.py")


def _type(newcomer: Newcomer, line: str, *, for_real: bool) -> str:
    words = shlex.split(line, comments=True)
    if words[:2] == ["make", "test"]:  # runs this test
        said = newcomer.types("make -n test")
        assert said == ".venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder\n"
        return said
    if for_real:
        return newcomer.types(line)
    if words[:2] == ["make", "demo"]:
        said = newcomer.types("make -n demo")
        assert said == ".venv/bin/blip3v demo\n"
        assert str(demo._BUNDLE) == MADE_BY_DEMO
        newcomer.types(f".venv/bin/blip3v export --encoder tokenlearner --precision fp16 -o {MADE_BY_DEMO}")
        return said
    if words[:2] == ["blip3v", "export"]:
        output = words[words.index("-o") + 1] if "-o" in words else Path(MADE_BY_DEMO).name
        shutil.copytree(newcomer.clone / MADE_BY_DEMO, newcomer.clone / output)
        return newcomer.types(f"{shlex.join(words)} --force --dry-run")
    return newcomer.types(line)


def _true_answer(clip: str, question: str) -> str:
    clips = json.loads((ROOT / "examples/questions.json").read_text("utf-8"))["clips"]
    questions = next(item["questions"] for item in clips if item["file"] == clip)
    return str(next(item["answer"] for item in questions if item["question"] == question))


def test_the_lines_that_install_name_extras_and_pin_pytorch() -> None:
    (block,) = (block for block in BLOCKS if block.not_run == "installs from the network")
    lines = [shlex.split(line, comments=True) for line in block.text.splitlines() if line.startswith("pip")]
    assert len(lines) > 2
    for *options, requirement in lines:
        match = re.fullmatch(r"\.\[([a-z,-]+)\]", requirement)
        assert match is not None, requirement
        packages = [package.name for extra in match[1].split(",") for package in extras.EXTRAS[extra]]
        assert options == ["pip", "install", *(["-c", "constraints.txt"] if "torch" in packages else [])]


@pytest.mark.parametrize("heading", ["No weights", "The released checkpoint", "Your own fine-tune"])
def test_each_start_takes_three_lines(heading: str) -> None:
    (block,) = re.findall(
        rf"^### {heading}\n\n(?:<!--[^>]*-->\n)?```sh\n(.*?)```", README.read_text("utf-8"), re.M | re.S
    )
    assert len(block.splitlines()) == 3
