"""All facts together, and what follows from them: which verbs this machine can run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import av.codec

import blip3v
from blip3v.doctor.machine import Machine, examine_machine
from blip3v.doctor.packages import ENGINES, PackageState, examine_packages
from blip3v.errors import ProviderError
from blip3v.extras import EXTRAS, pip_line
from blip3v.runtime.backends.onnxruntime import load_onnxruntime

__all__ = ["Cuda", "Engine", "Report", "Verdict", "VideoCodecs", "examine", "verdicts"]

_CUDA_PROBE = """
import json, torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([[device.name, device.total_memory] for device in devices]))
"""
_PROBE_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Engine:
    """ONNX Runtime, which runs bundles."""

    providers: tuple[str, ...]
    problem: str | None  # why no bundle can be opened, and what mends it


@dataclass(frozen=True, kw_only=True)
class VideoCodecs:
    """H.264 in PyAV."""

    h264_decoder: bool
    h264_encoder: bool


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """CUDA as PyTorch sees it, for training and for the reference."""

    devices: tuple[tuple[str, int], ...]  # name, bytes of memory
    note: str  # why there is none, or empty


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a verb can run here."""

    can_run: bool
    missing: tuple[str, ...]  # what is missing, each with the line that mends it


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that ``blip3v doctor`` knows."""

    version: str  # of blip3v
    machine: Machine
    packages: tuple[PackageState, ...]
    engine: Engine
    video: VideoCodecs
    cuda: Cuda
    models: tuple[str, ...]  # trained models that this installation ships
    verbs: Mapping[str, Verdict]


def examine() -> Report:
    """Looks at this machine and this environment."""
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
        models=_shipped_models(),
        verbs=verdicts(packages, engine, video),
    )


def verdicts(packages: Mapping[str, PackageState], engine: Engine, video: VideoCodecs) -> dict[str, Verdict]:
    """What can run, from the facts.

    Args:
        packages: name -> state, as ``examine_packages`` gives it.
        engine: ONNX Runtime.
        video: the codecs.

    Returns:
        Verdicts for ``ask``, ``export`` and ``train``.
    """
    no_engine = [engine.problem] if engine.problem else []
    no_decoder = [] if video.h264_decoder else ['PyAV has no H.264 decoder; run `pip install --force-reinstall "av"`']
    missing = {
        "ask": [*no_engine, *no_decoder],
        # The graphs are checked by running them, and on a real clip.
        "export": [*_missing(packages, "export"), *no_engine, *no_decoder],
        "train": _missing(packages, "train"),
    }
    return {verb: Verdict(can_run=not lacks, missing=tuple(lacks)) for verb, lacks in missing.items()}


def _missing(packages: Mapping[str, PackageState], extra: str) -> list[str]:
    broken = [packages[package.name] for package in EXTRAS[extra]]
    names = [_complaint(state) for state in broken if not state.works]
    return [f"{', '.join(names)}; run `{pip_line(extra)}`"] if names else []


def _complaint(state: PackageState) -> str:
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
    problem = f"{_complaint(old)}; run `{old.install}`" if old is not None else None
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
    # In a process of its own: importing a build that does not fit the machine can end the process that tries.
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", _CUDA_PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
    except subprocess.SubprocessError as error:
        return Cuda(devices=(), note=f"torch {torch.version} cannot tell: {error}")
    devices = tuple((str(name), int(memory)) for name, memory in json.loads(done.stdout.splitlines()[-1]))
    return Cuda(devices=devices, note="" if devices else f"torch {torch.version} finds no CUDA device")


def _shipped_models() -> tuple[str, ...]:
    models = Path(blip3v.__file__).parent / "models"
    return tuple(sorted(config.parent.name for config in models.glob("*/config.json")))
