"""What the numbers depend on, and the facts of one run."""

from __future__ import annotations

import datetime
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

import blip3v
from scripts.gpu.plan import Plan

__all__ = ["describe_environment", "describe_run"]

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


def describe_environment(plan: Plan) -> dict[str, Any]:
    """What has to be the same for all numbers of a file."""
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
    """When, of which commit, and how the device stood as the run began.

    Args:
        plan: of the run.
        stages: that it measures.
        commit: for a checkout without ``.git``; None: ask git.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit or _ask("git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40"),
        "stages": list(stages),
        "seconds_a_stage": plan.seconds,
        "nvidia_smi": _nvidia_smi() if plan.device.type == "cuda" else None,
    }


def _nvidia_smi() -> dict[str, str] | None:
    answer = _ask("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader")
    if answer is None:
        return None
    return dict(zip(_QUERY, (value.strip() for value in answer.splitlines()[0].split(",")), strict=False))


def _ask(*command: str) -> str | None:
    """What a program prints; None: it is not here, or has no answer."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() or None if done.returncode == 0 else None
