"""``blip3v doctor``: the facts against what the system reports, and what follows from them."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from blip3v import extras
from blip3v.commands.doctor import command
from blip3v.doctor import (
    ENGINES,
    Engine,
    PackageState,
    VideoCodecs,
    accelerators,
    examine_machine,
    examine_packages,
    installed_version,
    verdicts,
)
from blip3v.doctor.accelerators import run_apart
from blip3v.errors import ProviderError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
WORKING_ENGINE = Engine(providers=("CPUExecutionProvider",), problem=None)
WORKING_VIDEO = VideoCodecs(h264_decoder=True, h264_encoder=True)


@pytest.fixture(autouse=True)
def queried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query of GPUs and back ends is a process of its own; the answers are the same for all tests."""
    monkeypatch.setattr(accelerators, "run_apart", queried)


@functools.cache
def queried(function: str, *arguments: str) -> object:
    return run_apart(function, *arguments)


def everything(name: str) -> str:
    """A version newer than any required."""
    return "99.0"


def without(*missing: str):
    """An environment with all packages but the ones named."""
    return lambda name: None if name in missing else "99.0+cpu"  # a CPU build is not probed for CUDA


def applies(line: Requirement) -> bool:
    """Whether it is one for the Python that runs."""
    return line.marker is None or line.marker.evaluate()


def test_the_table_of_extras_is_that_of_pyproject():
    declared = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    del declared["dev"]  # for tests and checks, not for users
    here = {extra: [line for line in map(Requirement, lines) if applies(line)] for extra, lines in declared.items()}
    table = {
        extra: [f"{package.name}>={package.at_least}" for package in packages]
        for extra, packages in extras.EXTRAS.items()
    }
    assert table == {extra: [f"{line.name}{line.specifier}" for line in lines] for extra, lines in here.items()}


def test_every_module_of_the_table_that_is_installed_belongs_to_its_package():
    providers = importlib.metadata.packages_distributions()
    for packages in extras.EXTRAS.values():
        for package in packages:
            # Those of ONNX Runtime own the same folder; CUDA's and TensorRT's are not installed where there is no GPU.
            if package.name not in ENGINES and installed_version(package.name) is not None:
                assert package.name in [name.replace("_", "-") for name in providers[package.module]]


@pytest.mark.parametrize(
    ("module", "prefer", "extra"),
    [
        pytest.param("onnxruntime", "", "cpu", id="onnxruntime"),
        pytest.param("torch.nn", "", "export", id="submodule"),
        pytest.param("torch", "train", "train", id="preferred"),
        pytest.param("onnxscript", "train", "export", id="preferred extra does not hold it"),
        pytest.param("torchvision", "", None, id="similar name"),
        pytest.param("", "", None, id="no name"),
    ],
)
def test_extra_of(module: str, prefer: str, extra: str | None):
    assert extras.extra_of(module, prefer=prefer) == extra


@pytest.mark.parametrize(
    ("version", "works"),
    [
        pytest.param("2.11", True, id="equal"),
        pytest.param("2.13.0+cpu", True, id="local build"),
        pytest.param("2.9.1", False, id="9 is less than 11"),
        pytest.param("3", True, id="shorter"),
        pytest.param("2.11.0rc1", True, id="candidate"),
        pytest.param("unknown", False, id="no number"),
        pytest.param(None, False, id="missing"),
    ],
)
def test_versions_compare_as_numbers(version: str | None, works: bool):
    state = PackageState(name="torch", extras=("export", "train"), version=version, at_least="2.11")
    assert state.works is works
    assert state.install == (None if works else extras.pip_line("export"))


def test_versions_are_those_of_the_installed_packages():
    states = examine_packages()
    assert states["transformers"].version == importlib.metadata.version("transformers")
    assert states["torch"].extras == ("export", "train", "lmms")


def test_with_every_package_everything_runs():
    found = verdicts(examine_packages(everything), WORKING_ENGINE, WORKING_VIDEO)
    assert {verb: verdict.can_run for verb, verdict in found.items()} == {"ask": True, "export": True, "train": True}


def test_ask_does_not_need_torch():
    found = verdicts(examine_packages(without("torch")), WORKING_ENGINE, WORKING_VIDEO)
    assert {verb: verdict.can_run for verb, verdict in found.items()} == {"ask": True, "export": False, "train": False}
    assert found["export"].missing == (f"torch is not installed; run `{extras.pip_line('export')}`",)
    assert found["train"].missing == (f"torch is not installed; run `{extras.pip_line('train')}`",)


@pytest.mark.parametrize(("package", "verbs"), [("accelerate", ["export", "train"]), ("onnxscript", ["export"])])
def test_a_package_stops_the_verbs_that_need_it(package: str, verbs: list[str]):
    found = verdicts(examine_packages(without(package)), WORKING_ENGINE, WORKING_VIDEO)
    assert [verb for verb, verdict in found.items() if not verdict.can_run] == verbs


def test_no_engine_and_no_decoder_are_both_named():
    engine = Engine(providers=(), problem="no engine")
    video = VideoCodecs(h264_decoder=False, h264_encoder=False)
    missing = verdicts(examine_packages(everything), engine, video)["ask"].missing
    assert missing[0] == "no engine"
    assert "H.264" in missing[1]


def test_openvino_alone_answers_but_does_not_check_an_export():
    engine = Engine(providers=(), problem="no ONNX Runtime")
    packages = examine_packages(lambda name: None if name.startswith("onnxruntime") else "9999.0")
    found = verdicts(packages, engine, WORKING_VIDEO)
    assert found["ask"].can_run
    assert found["export"].missing == ("no ONNX Runtime",)


def test_an_old_package_is_named_with_both_versions():
    packages = examine_packages(lambda name: "5.2.0" if name == "transformers" else "99.0")
    (missing,) = verdicts(packages, WORKING_ENGINE, WORKING_VIDEO)["train"].missing
    assert missing == f"transformers 5.2.0 is older than 5.17; run `{extras.pip_line('train')}`"


def test_machine_is_this_one():
    machine = examine_machine()
    assert machine.python == platform.python_version()
    assert 1 <= machine.num_cpus <= (os.cpu_count() or 1)
    if sys.platform == "linux":
        assert machine.memory_total_bytes is not None
        assert machine.memory_available_bytes is not None
        assert 0 < machine.memory_available_bytes <= machine.memory_total_bytes


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "name", "there"),
    [
        pytest.param(
            "x86_64",
            "processor\t: 0\nmodel name\t: Zen 4\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\nflags\t\t: none\n",
            "Zen 4",
            {"avx2", "avx512_vnni"},
            id="x86",
        ),
        pytest.param("aarch64", "processor\t: 0\nFeatures\t: fp asimd i8mm\n", None, {"asimd", "i8mm"}, id="arm"),
        pytest.param("x86_64", None, None, None, id="no /proc"),
    ],
)
def test_processor_flags(
    architecture: str,
    cpuinfo: str | None,
    name: str | None,
    there: set[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(platform, "processor", lambda: "")
    if cpuinfo is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    machine = examine_machine(tmp_path)
    assert machine.cpu == name
    found = None if machine.cpu_flags is None else {flag for flag, has in machine.cpu_flags.items() if has}
    assert found == there


def test_json_is_one_object_with_every_fact():
    result = CliRunner().invoke(command, ["--json"], catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert {state["name"]: state["works"] for state in report["packages"]}["torch"] is True
    assert "CPUExecutionProvider" in report["engine"]["providers"]
    assert report["verbs"]["ask"] == {"can_run": True, "missing": []}


def test_two_builds_of_onnxruntime_are_refused_with_the_command_that_fixes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both wheels own the folder `onnxruntime`: the last one installed wins, and removing either breaks the other."""
    metadata = tmp_path / "onnxruntime_gpu-1.31.0.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(command, [])
    assert isinstance(result.exception, ProviderError)
    assert result.exception.exit_code == 6
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(result.exception)
    assert "ask, export: onnxruntime and onnxruntime-gpu are both installed" in result.stdout


def test_install_lines_are_whole(monkeypatch: pytest.MonkeyPatch):
    """In the table rich read the brackets of an extra as markup, and folded a line that was longer than its column."""
    monkeypatch.setattr("blip3v.doctor.examine_packages", lambda: examine_packages(without("matplotlib")))
    result = CliRunner().invoke(command, [], catch_exceptions=False)
    assert result.exit_code == 0
    line = extras.pip_line("eval")
    assert "[eval]" in line
    assert f"matplotlib: run `{line}`" in result.stdout.splitlines()


def test_each_install_line_appears_once(monkeypatch: pytest.MonkeyPatch):
    missing = ("torch", "onnx", "openvino")
    monkeypatch.setattr("blip3v.doctor.examine_packages", lambda: examine_packages(without(*missing)))
    result = CliRunner().invoke(command, [], catch_exceptions=False)
    for extra, count in {"export": 1, "train": 1, "openvino": 1, "eval": 0}.items():
        assert result.stdout.count(extras.pip_line(extra)) == count, extra


def test_doctor_itself_imports_no_torch():
    """Importing it takes seconds, and a machine that only answers does not have it."""
    code = "import sys; from blip3v.doctor import examine; examine(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
