"""The command that installs an extra, for every way in which blip3v itself can have been installed."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from blip3v.extras import EXTRAS, pip_command, pip_line, reinstall_line

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Install = Callable[[dict[str, Any] | str | None], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts metadata of blip3v in front of the real ones, with this record of where it came from; None: an index."""
    monkeypatch.setattr(shutil, "which", lambda name: f"{sys.prefix}/bin/{name}" if name == "pip" else None)
    monkeypatch.setattr(sys, "executable", f"{sys.prefix}/bin/python")
    monkeypatch.setattr(sys, "base_prefix", "/usr")

    def write(record: dict[str, Any] | str | None) -> None:
        folder = tmp_path / "site-packages" / "blip3v-9.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: blip3v\nVersion: 9\n")
        if record is not None:
            (folder / "direct_url.json").write_text(record if isinstance(record, str) else json.dumps(record))
        monkeypatch.syspath_prepend(folder.parent)

    return write


@pytest.mark.parametrize(
    ("record", "requirement"),
    [
        pytest.param(None, "blip3v[cpu]", id="index"),
        pytest.param(
            {"url": "https://host/blip3v.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
            f"blip3v[cpu] @ git+https://host/blip3v.git@{COMMIT}",
            id="git, at the installed commit",
        ),
        pytest.param(
            {
                "url": "https://host/all.git",
                "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": COMMIT},
                "subdirectory": "tools/blip3v",
            },
            f"blip3v[cpu] @ git+https://host/all.git@{COMMIT}#subdirectory=tools/blip3v",
            id="git, in a folder of the repository",
        ),
        pytest.param(
            {"url": "https://host/blip3v-9-py3-none-any.whl", "archive_info": {}},
            "blip3v[cpu] @ https://host/blip3v-9-py3-none-any.whl",
            id="wheel",
        ),
        pytest.param({"url": "file:///gone/blip3v.whl", "archive_info": {}}, "onnxruntime>=1.31", id="wheel is gone"),
        pytest.param({"url": "file:///gone", "dir_info": {}}, "onnxruntime>=1.31", id="folder is gone"),
        pytest.param(
            {"url": "file:///tmp", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
            "onnxruntime>=1.31",
            id="git on this disk",
        ),
        pytest.param("{", "onnxruntime>=1.31", id="not JSON"),
        pytest.param("[]", "onnxruntime>=1.31", id="a list"),
        pytest.param({"dir_info": {}}, "onnxruntime>=1.31", id="no url"),
        pytest.param({"url": 7, "dir_info": {}}, "onnxruntime>=1.31", id="url is a number"),
    ],
)
def test_the_line_names_what_blip3v_was_installed_from(
    install: Install, record: dict[str, Any] | str | None, requirement: str
) -> None:
    """Every message used to print `pip install "blip3v[cpu]"`, and no package of that name is published."""
    install(record)
    assert pip_line("cpu") == f'pip install "{requirement}"'


@pytest.mark.parametrize("name", ["blip3v", "my clones/it's $5"], ids=["plain", "odd characters"])
@pytest.mark.parametrize("editable", [True, False], ids=["editable", "copied"])
def test_a_checkout_is_named_by_its_folder(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, editable: bool
) -> None:
    checkout = tmp_path / name
    checkout.mkdir(parents=True)
    install({"url": checkout.as_uri(), "dir_info": {"editable": True} if editable else {}})
    option = ["-e"] if editable else []
    assert shlex.split(pip_line("cpu")) == ["pip", "install", *option, f"{checkout}[cpu]"]
    monkeypatch.chdir(checkout)
    assert pip_line("cpu") == " ".join(["pip", "install", *option, '".[cpu]"'])


def test_extras_with_pytorch_keep_to_the_constraints_of_the_checkout(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constraints.txt").touch()
    install({"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.chdir(tmp_path)
    assert pip_line("export") == 'pip install -c constraints.txt -e ".[export]"'
    assert pip_line("train") == 'pip install -c constraints.txt -e ".[train]"'
    assert pip_line("eval") == 'pip install -e ".[eval]"'
    monkeypatch.chdir(tmp_path.parent)
    assert pip_line("train") == f'pip install -c {tmp_path.name}/constraints.txt -e "{tmp_path}[train]"'


def test_without_metadata_the_packages_themselves_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """blip3v run from its sources was never installed, and need not be."""
    monkeypatch.setattr(sys, "path", [])
    words = shlex.split(pip_line("cpu"))
    assert words[-2:] == ["install", "onnxruntime>=1.31"]


@pytest.mark.parametrize(
    ("pip", "venv", "start"),
    [
        pytest.param("/here/.venv/bin/pip", True, "pip", id="active"),
        pytest.param("/usr/bin/pip", True, ".venv/bin/python -m pip", id="not active"),
        pytest.param(None, True, ".venv/bin/python -m pip", id="no pip on the PATH"),
        pytest.param("/here/.venv/bin/pip", False, ".venv/bin/python -m pip", id="pip of another Python in its folder"),
    ],
)
def test_it_installs_into_the_interpreter_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pip: str | None, start: str, *, venv: bool
) -> None:
    """`make demo` activates nothing, so a bare `pip` was that of the system."""
    here = str(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", f"{here}/.venv/bin/python")
    monkeypatch.setattr(sys, "base_prefix", "/usr" if venv else sys.prefix)
    monkeypatch.setattr(shutil, "which", lambda name: pip and pip.replace("/here", here) if name == "pip" else None)
    assert pip_command("install", "av") == f"{start} install av"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert pip_command("install", "av") == f"{start.replace('.venv', f'{here}/.venv')} install av"
    if start != "pip":
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "executable", f"{here}/python")
        assert pip_command("install", "av") == "./python -m pip install av"  # not the `python` of the PATH


def test_an_environment_without_pip_is_left_to_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/uv" if name == "uv" else None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert pip_command("install", "av") == 'uv pip install --python "/my env/bin/python" av'


def test_a_broken_build_is_replaced_by_the_wheel() -> None:
    assert reinstall_line("av").endswith("pip install --force-reinstall --only-binary av av")


def test_a_host_that_embeds_python_gets_a_command_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", None)
    assert pip_command("install", "av") == "python -m pip install av"


@pytest.mark.parametrize("extra", EXTRAS)
def test_this_installation_gets_a_line_that_works(extra: str) -> None:
    """The interpreter of the line is this one, and the folder is a project that has this extra."""
    *command, requirement = shlex.split(pip_line(extra))
    assert command[:2] == ["pip", "install"] or Path(command[0]).absolute() == Path(sys.executable)
    if (record := distribution("blip3v").read_text("direct_url.json")) and "dir_info" in json.loads(record):
        folder, bracket, _ = requirement.rpartition(f"[{extra}]")
        assert bracket
        assert 'name = "blip3v"' in (Path(folder) / "pyproject.toml").read_text("utf-8")
        assert ("-e" in command) == json.loads(record)["dir_info"].get("editable", False)
        pinned = [Path(command[i + 1]) for i, word in enumerate(command) if word == "-c"]
        assert all(path.is_file() for path in pinned)
