"""Shell completion: click's script, installed by a command, and quick enough for every Tab."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from blip3v import cli
from blip3v.bundle.precision import PRECISIONS
from blip3v.commands.completion import command

ROOT = Path(__file__).parents[2]
SHELLS = ("bash", "zsh", "fish")
LISTED = """
import sys
from blip3v.cli import main
try:
    main()
finally:
    print(sorted(sys.modules), file=sys.stderr)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def complete(words: str) -> subprocess.CompletedProcess[str]:
    """What bash asks for at a Tab after ``words``."""
    count = len(words.split(" ")) - 1
    environment = os.environ | {"_BLIP3V_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    return subprocess.run(
        [sys.executable, "-c", LISTED], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )


def run(*args: str) -> Result:
    return CliRunner().invoke(command, list(args), catch_exceptions=False)


def test_verbs_are_completed_without_importing_any() -> None:
    """click imports every command for its help text, which would take half a second at each Tab."""
    done = complete("blip3v ")
    assert done.stdout.splitlines() == [f"plain,{verb}" for verb in cli._VERBS]
    assert complete("blip3v ins").stdout == "plain,inspect\n"
    for module in ("numpy", "torch", "rich", "onnxruntime"):
        assert f"'{module}'" not in done.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("blip3v export --prec", ["plain,--precision"]),
        ("blip3v export --encoder tok", ["plain,tokenlearner"]),
        ("blip3v verify ", ["file,"]),
        ("blip3v ask --backend op", ["plain,openvino"]),
        ("blip3v bench --backend o", ["plain,onnxruntime", "plain,onnxruntime-cuda", "plain,openvino"]),
        ("blip3v eval --backend a", ["plain,auto"]),
        ("blip3v chat --device ", ["plain,auto", "plain,cpu", "plain,cuda", "plain,gpu", "plain,npu"]),
        ("blip3v train --recipe tiny-b", ["plain,tiny-base"]),
        ("blip3v train --recipe ./", ["file,./"]),
        ("blip3v export --precision ", [f"plain,{name}" for name in PRECISIONS]),
        ("blip3v bench --precision fp1", ["plain,fp16"]),
        ("blip3v exprt --", ["plain,--version", "plain,--help"]),
    ],
)
def test_options_and_values_are_completed_without_pytorch(words: str, found: list[str]) -> None:
    """An unknown verb printed a usage error into the line that was being typed; --backend, --device, --recipe and
    --precision, which take other values too, completed nothing."""
    done = complete(words)
    assert done.stdout.splitlines() == found
    assert "'torch'" not in done.stderr
    assert "Error" not in done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_installed_where_the_shell_looks(shell: str, home: Path) -> None:
    places = {
        "bash": ".local/share/bash-completion/completions/blip3v",
        "zsh": ".zfunc/_blip3v",
        "fish": ".config/fish/completions/blip3v.fish",
    }
    printed = run(shell)
    assert "_BLIP3V_COMPLETE" in printed.stdout
    assert list(home.iterdir()) == []
    for _ in range(2):  # installing again replaces it
        installed = run(shell, "--install")
        file = home / places[shell]
        assert installed.stdout == f"{file}\n"
        assert "to activate it: " in installed.stderr
        assert file.read_text("utf-8") == printed.stdout
        assert [path for path in home.rglob("*") if path.is_file()] == [file]
    assert run(shell, "--install", "--quiet").stderr == ""
    assert json.loads(run(shell, "--install", "--json").stdout).keys() == {"shell", "output", "activate"}
    assert json.loads(run(shell, "--json").stdout) == {"shell": shell, "script": printed.stdout}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_reads(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(run(shell).stdout)
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


@pytest.mark.parametrize(
    ("login", "says"), [("/bin/zsh", None), ("/bin/tcsh", "'tcsh'"), ("", "unknown")], ids=["zsh", "tcsh", "none"]
)
def test_the_login_shell_is_the_default(
    login: str, says: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHELL", login)
    assert cli._run(["completion"]) == (0 if says is None else 2)
    printed = capsys.readouterr()
    if says is None:
        assert printed.out == run("zsh").stdout
    else:
        assert f"error: the login shell is {says}; name one of bash, zsh, fish" in printed.err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_a_verb(home: Path, tmp_path: Path) -> None:
    """The whole way: the installed script, the program, the words of bash."""
    run("bash", "--install")
    program = tmp_path / "bin" / "blip3v"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m blip3v "$@"\n')
    program.chmod(0o755)
    script = (
        f"source {home}/.local/share/bash-completion/completions/blip3v\n"
        "COMP_WORDS=(blip3v ver); COMP_CWORD=1; _blip3v_completion blip3v\n"
        'echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "verify\n"
