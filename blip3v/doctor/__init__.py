"""What this machine can run and what is missing: first the facts, then what they mean for each verb.

Nothing here installs or changes anything. Versions come from the metadata of installed packages, so that no heavy
package is imported just for its version; facts about the machine come from the standard library and ``/proc``. GPUs,
NPUs and the back ends that use them: ``accelerators.py``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import av.codec

import blip3v
from blip3v.doctor.accelerators import Accelerators, examine_accelerators
from blip3v.errors import ProviderError
from blip3v.extras import EXTRAS, Package, pip_line, reinstall_line
from blip3v.python_arguments import code_arguments
from blip3v.runtime.machine import cpu_features, cpu_name, usable_cpus
from blip3v.runtime.memory import available_bytes
from blip3v.runtime.onnxruntime_graph import load_onnxruntime

__all__ = [
    "ENGINES",
    "Accelerators",
    "Cuda",
    "Engine",
    "Machine",
    "PackageState",
    "Report",
    "Verdict",
    "VideoCodecs",
    "examine",
    "examine_machine",
    "examine_packages",
    "installed_version",
    "verdicts",
]

ENGINES = ("onnxruntime", "onnxruntime-gpu")  # two builds that own the same folder

# The processor features that ONNX Runtime's kernels look for, by the names that Linux gives them.
_WANTED_FLAGS = {
    "x86_64": ("avx2", "f16c", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_fp16"),
    "aarch64": ("asimd", "asimddp", "i8mm", "fphp", "asimdhp"),
}
_ARCHITECTURE_ALIASES = {"AMD64": "x86_64", "arm64": "aarch64"}

_CUDA_PROBE = """
import json, torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([[device.name, device.total_memory] for device in devices]))
"""
_PROBE_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about the machine; None if the system does not provide one."""

    python: str  # version
    executable: str
    virtual_env: bool
    system: str  # name and version
    architecture: str
    cpu: str | None
    num_cpus: int  # usable by this process
    cpu_flags: dict[str, bool] | None  # flag -> whether the processor has it
    memory_total_bytes: int | None
    memory_available_bytes: int | None  # for this process: a control group may allow less than the machine has
    disk_free_bytes: int  # on the disk of the current folder


def examine_machine(root: Path = Path("/")) -> Machine:
    """Examines this machine.

    Args:
        root: folder that contains ``proc`` and ``sys``.
    """
    architecture = _ARCHITECTURE_ALIASES.get(platform.machine(), platform.machine())
    return Machine(
        python=platform.python_version(),
        executable=sys.executable,
        virtual_env=sys.prefix != sys.base_prefix,
        system=platform.platform(terse=True),
        architecture=architecture,
        cpu=cpu_name(root),
        num_cpus=usable_cpus() or 1,
        cpu_flags=_has_flags(cpu_features(root), _WANTED_FLAGS.get(architecture, ())),
        memory_total_bytes=_total_memory(),
        memory_available_bytes=available_bytes(root),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
    )


def _has_flags(features: str | None, wanted: tuple[str, ...]) -> dict[str, bool] | None:
    """Which of the wanted features the processor has; None: not known, or none is wanted."""
    if features is None or not wanted:
        return None
    found = set(features.split())
    return {flag: flag in found for flag in wanted}


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None  # not available on this system


@dataclass(frozen=True, kw_only=True)
class PackageState:
    """One optional package as installed here."""

    name: str  # its name in pip
    extras: tuple[str, ...]  # those that install it
    version: str | None  # None: not installed
    at_least: str  # oldest version that works

    @property
    def works(self) -> bool:
        """Whether it is installed and new enough."""
        return self.version is not None and _numbers(self.version) >= _numbers(self.at_least)

    @property
    def install(self) -> str | None:
        """The command that installs or upgrades it; None if it works."""
        return None if self.works else pip_line(self.extras[0])


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine_packages(version_of: Callable[[str], str | None] = installed_version) -> dict[str, PackageState]:
    """Looks for every package that an extra installs.

    Args:
        version_of: returns the installed version of a distribution; None if there is none.

    Returns:
        Package name -> its state, in the order of the extras.
    """
    states: dict[str, PackageState] = {}
    for package in dict.fromkeys(package for packages in EXTRAS.values() for package in packages):
        states[package.name] = _state(package, version_of(package.name))
    return states


def _state(package: Package, version: str | None) -> PackageState:
    extras = tuple(extra for extra, packages in EXTRAS.items() if package in packages)
    return PackageState(name=package.name, extras=extras, version=version, at_least=package.at_least)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) for 2.13.0+cpu."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


@dataclass(frozen=True, kw_only=True)
class Engine:
    """ONNX Runtime, which runs bundles and checks exports."""

    providers: tuple[str, ...]
    problem: str | None  # why it cannot open a bundle, and how to fix it


@dataclass(frozen=True, kw_only=True)
class VideoCodecs:
    """H.264 in PyAV."""

    h264_decoder: bool
    h264_encoder: bool


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """CUDA as PyTorch sees it, for training and for the reference."""

    devices: tuple[tuple[str, int], ...]  # name, bytes of memory
    note: str  # why there is no device; empty if there is one


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a verb can run here."""

    can_run: bool
    missing: tuple[str, ...]  # what is missing, each with the command that fixes it


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that ``blip3v doctor`` reports."""

    version: str  # of blip3v
    machine: Machine
    packages: tuple[PackageState, ...]
    engine: Engine
    video: VideoCodecs
    cuda: Cuda
    accelerators: Accelerators
    models: tuple[str, ...]  # trained models shipped with this installation
    verbs: Mapping[str, Verdict]


def examine() -> Report:
    """Examines this machine and this environment."""
    packages = examine_packages()
    engine = _engine(packages)
    video = VideoCodecs(h264_decoder=_has_codec("h264", "r"), h264_encoder=_has_codec("libx264", "w"))
    return Report(
        version=blip3v.__version__,
        machine=examine_machine(),
        packages=tuple(packages.values()),
        engine=engine,
        video=video,
        cuda=_cuda(packages["torch"]),
        accelerators=examine_accelerators(),
        models=_shipped_models(),
        verbs=verdicts(packages, engine, video),
    )


def verdicts(packages: Mapping[str, PackageState], engine: Engine, video: VideoCodecs) -> dict[str, Verdict]:
    """Concludes from the facts what can run.

    Args:
        packages: name -> state, as ``examine_packages`` returns it.
        engine: ONNX Runtime.
        video: the H.264 codecs.

    Returns:
        Verdicts for ``ask``, ``export`` and ``train``.
    """
    no_engine = [engine.problem] if engine.problem else []
    only_openvino = packages["openvino"].works and all(packages[name].version is None for name in ENGINES)
    no_decoder = [] if video.h264_decoder else [f"PyAV has no H.264 decoder; run `{reinstall_line('av')}`"]
    missing = {
        # Either engine answers; the parity check of an export needs ONNX Runtime.
        "ask": [*([] if only_openvino else no_engine), *no_decoder],
        # The graphs are checked by running them, and on a real clip.
        "export": [*_missing(packages, "export"), *no_engine, *no_decoder],
        "train": _missing(packages, "train"),
    }
    return {verb: Verdict(can_run=not items, missing=tuple(items)) for verb, items in missing.items()}


def _missing(packages: Mapping[str, PackageState], extra: str) -> list[str]:
    states = [packages[package.name] for package in EXTRAS[extra]]
    problems = [_problem(state) for state in states if not state.works]
    return [f"{', '.join(problems)}; run `{pip_line(extra)}`"] if problems else []


def _problem(state: PackageState) -> str:
    if state.version is None:
        return f"{state.name} is not installed"
    return f"{state.name} {state.version} is older than {state.at_least}"


def _engine(packages: Mapping[str, PackageState]) -> Engine:
    try:
        providers = tuple(load_onnxruntime().get_available_providers())
    except ProviderError as error:
        return Engine(providers=(), problem=str(error))
    installed = [packages[name] for name in ENGINES if packages[name].version is not None]
    old = next((state for state in installed if not state.works), None)
    problem = f"{_problem(old)}; run `{old.install}`" if old is not None else None
    return Engine(providers=providers, problem=problem)


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        av.codec.Codec(name, mode)
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _cuda(torch: PackageState) -> Cuda:
    if torch.version is None:
        return Cuda(devices=(), note="torch is not installed")
    if torch.version.endswith("+cpu"):
        return Cuda(devices=(), note=f"torch {torch.version} is a CPU build")
    # In a separate process: importing a build that does not suit the machine can crash the process that tries.
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *code_arguments(_CUDA_PROBE)],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
    except subprocess.SubprocessError as error:
        return Cuda(devices=(), note=f"torch {torch.version} could not be queried: {error}")
    devices = tuple((str(name), int(memory)) for name, memory in json.loads(done.stdout.splitlines()[-1]))
    return Cuda(devices=devices, note="" if devices else f"torch {torch.version} finds no CUDA device")


def _shipped_models() -> tuple[str, ...]:
    models = Path(blip3v.__file__).parent / "models"
    return tuple(sorted(config.parent.name for config in models.glob("*/config.json")))
