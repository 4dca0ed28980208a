"""How a command fails: a JSON object with --json, and words instead of the system's numbers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest

from blip3v import cli
from blip3v.errors import OutOfMemoryError, ParityError

ROOT = Path(__file__).parents[2]


def add_verb(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Adds a verb `fail` that raises ``error``."""

    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    def command(as_json: bool) -> None:
        raise error

    module = types.ModuleType("blip3v.commands.fail")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli._VERBS, "fail", "Fails.")


@pytest.mark.parametrize(
    ("error", "kind", "message", "exit_code"),
    [
        (ParityError("off", remedy="try `check=False`"), "ParityError", "off; try --no-check", 5),
        (OutOfMemoryError("no \N{SNOWMAN}"), "OutOfMemoryError", "no \N{SNOWMAN}", 6),
        (click.UsageError("bad"), "UsageError", "bad", 2),
        (click.BadParameter("bad"), "UsageError", "Invalid value: bad", 2),
        (KeyboardInterrupt(), "Interrupted", "interrupted", 130),
        (FileNotFoundError(errno.ENOENT, "", "x"), "FileNotFoundError", "x: it does not exist", 1),
        (OSError(errno.EROFS, "", "x"), "OSError", "x: the file system is read-only", 1),
    ],
    ids=["ours", "unicode", "usage", "parameter", "interrupt", "system", "read-only"],
)
def test_with_json_an_error_is_an_object_too(
    error: BaseException,
    kind: str,
    message: str,
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script that read stdout as JSON found nothing there when the command failed."""
    add_verb(monkeypatch, error)
    assert cli._run(["fail", "--json"]) == exit_code
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"error": {"type": kind, "message": message, "exit_code": exit_code}}
    assert printed.out.count("\n") == 1
    assert message.removeprefix("Invalid value: ") in printed.err
    assert cli._run(["fail"]) == exit_code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("args", [["zzz", "--json"], ["--json"], ["data", "--count", "0", "--json"], ["ask", "--json"]])
def test_a_wrong_command_line_is_an_object_too(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(args) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "UsageError"


def test_what_follows_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["inspect", "--", "--json"]) == 3
    assert capsys.readouterr().out == ""


def test_a_bug_keeps_its_traceback_with_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_verb(monkeypatch, ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        cli._run(["fail", "--json"])
    assert capsys.readouterr().out == ""


def test_a_result_that_is_also_an_error_is_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`doctor --json` and `verify --json` report and then fail: the error is inside what they print."""
    metadata = tmp_path / "onnxruntime_gpu-1.31.0.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli._run(["doctor", "--json"]) == 6
    report = json.loads(capsys.readouterr().out)
    assert report["verbs"]["ask"]["can_run"] is False
    assert report["error"]["type"] == "ProviderError"


def run(*args: str, stdout: int | None) -> subprocess.CompletedProcess[str]:
    """Runs the command line with this stdout; None: closed."""
    code = "from blip3v.cli import main; main()"
    closed = "import os; os.close(1); import sys; os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])"
    return subprocess.run(
        [sys.executable, "-c", *((closed, code) if stdout is None else (code,)), *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_a_full_disk_behind_stdout_is_one_line(flags: list[str]) -> None:
    """It was "[Errno 28]", and the interpreter failed once more when it ended."""
    with open("/dev/full", "w") as full:
        done = run("doctor", *flags, stdout=full.fileno())
        refused = run("inspect", "nowhere", *flags, stdout=full.fileno())
    text = "error: the disk is full (the system names no file; it may be where standard output goes)\n"
    assert (done.returncode, done.stderr) == (1, text)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)


@pytest.mark.skipif(os.name != "posix", reason="descriptors of POSIX")
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_a_closed_stdout_is_refused_before_the_work(flags: list[str]) -> None:
    """It was a traceback: 'NoneType' object has no attribute 'flush'."""
    done = run("verify", "nowhere", *flags, stdout=None)
    assert (done.returncode, done.stderr) == (1, "error: standard output: it is closed\n")
