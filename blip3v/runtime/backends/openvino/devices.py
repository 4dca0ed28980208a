"""The devices that OpenVINO has on this machine, why it does not have one, and the memory of a GPU."""

from __future__ import annotations

import functools

import openvino
import openvino.opset16 as ops

from blip3v.errors import ProviderError
from blip3v.runtime.memory import HOST, Memory

__all__ = ["check_device", "cpu_has_bf16", "gpu_memory"]

_MAX_CHARS = 300


def check_device(device: str) -> None:
    """Raises unless OpenVINO has a device of that name.

    Args:
        device: as OpenVINO names it: "GPU", or "GPU.1" for the second.

    Raises:
        ProviderError: it has not; with the devices that it has and its own reason.
    """
    core = openvino.Core()
    available = core.available_devices
    # With a single device of a kind OpenVINO lists it without its number, and takes both names.
    if device in available or device.removesuffix(".0") in available or f"{device}.0" in available:
        return
    raise ProviderError(
        f"OpenVINO has no device {device} here; it has {', '.join(available)}. It says: {_reason(core, device)}; "
        f"install the device's driver, or choose {' or '.join(name.lower() for name in available)}"
    )


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies in bf16 by instructions of its own."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def gpu_memory(device: str) -> Memory:
    """Where the weights of a GPU lie: the machine's memory if the GPU is a part of the processor, else its own.

    Args:
        device: as OpenVINO names it: "GPU.1".
    """
    if str(openvino.Core().get_property(device, "DEVICE_TYPE")).endswith("INTEGRATED"):
        return HOST
    # OpenVINO tells what it has itself allocated there, and no one what others have.
    return Memory(f"the {device}", functools.partial(_total_bytes, device), "in all")


def _total_bytes(device: str) -> int | None:
    try:
        return int(openvino.Core().get_property(device, "GPU_DEVICE_TOTAL_MEM_SIZE"))
    except RuntimeError:  # a plugin without the property
        return None


def _reason(core: openvino.Core, device: str) -> str:
    """What OpenVINO says when it is to compile a graph of one node for the device."""
    x = ops.parameter([1], openvino.Type.f32)
    try:
        core.compile_model(openvino.Model([ops.relu(x)], [x]), device)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
        return " ".join(" ".join(lines).split())[:_MAX_CHARS] or "nothing"
    return "nothing"
