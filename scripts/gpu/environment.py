"""The environment that the numbers depend on, and facts about one run."""

from __future__ import annotations

import datetime
import platform
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

import blip3v
from blip3v.errors import ProviderError
from blip3v.extras import EXTRAS, Package, pip_command
from scripts.gpu.plan import Plan

__all__ = ["check_export_packages", "describe_environment", "describe_run", "is_installed"]

_ROOT = Path(__file__).resolve().parents[2]
_QUERY = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
)
# Of the base install: what prompts and frames go through.
_BASE = (
    Package("jinja2", "3.1.6", "jinja2"),
    Package("pillow", "11", "PIL"),
)


def check_export_packages() -> None:
    """Raises unless everything is installed that exports bundles; PyAV is not needed.

    Raises:
        ProviderError: names the packages and the line that installs them.
    """
    missing = [package for package in (*EXTRAS["export"], *_BASE) if not is_installed(package.module)]
    if missing:
        line = pip_command("install", *(f"{package.name}>={package.at_least}" for package in missing))
        names = ", ".join(package.name for package in missing)
        raise ProviderError(
            f"stage runtime exports bundles, which needs {names}; run: {line}, or name the other stages with --only"
        )


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # a test has put None in its place
        return False


def describe_environment(plan: Plan) -> dict[str, Any]:
    """Everything that must be equal for all numbers of a file."""
    cuda = plan.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(plan.device) if cuda else platform.processor() or platform.machine(),
        "is_gpu": cuda,
        "smallest": plan.smallest,
        "preset": plan.config.name,
        "perturb": plan.perturb,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "blip3v": blip3v.__version__,
    }


def describe_run(plan: Plan, stages: tuple[str, ...], *, commit: str | None) -> dict[str, Any]:
    """The date, the commit, and the state of the device as the run begins.

    Args:
        plan: the plan of the run.
        stages: the stages that it measures.
        commit: the commit of a checkout without ``.git``; None: ask git.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _output_of("git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40"),
        "stages": list(stages),
        "seconds_a_stage": plan.seconds,
        "nvidia_smi": _nvidia_smi() if plan.device.type == "cuda" else None,
    }


def _nvidia_smi() -> dict[str, str] | None:
    answer = _output_of("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader")
    if answer is None:
        return None
    return dict(zip(_QUERY, (value.strip() for value in answer.splitlines()[0].split(",")), strict=False))


def _output_of(*command: str) -> str | None:
    """What a program prints; None: it is not installed, fails or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() or None if done.returncode == 0 else None
