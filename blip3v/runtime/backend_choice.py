"""Which back ends there are, what names them, and which one ``auto`` takes.

A back end is named after its module in ``runtime/backends``, with its device behind a colon if that is not the first
that it runs on: ``openvino``, ``openvino:gpu``, ``onnxruntime-cuda``. Two with a plus between them are a decoder's: the
first reads prompts and the second takes the steps (``runtime/paired.py``). What a back end offers:
``runtime/backends/__init__.py``, which has every name of this module too.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from blip3v.bundle.precision import GraphPrecision, Precision
from blip3v.bundle.targets import DEFAULT_TARGET, Target, is_tensorrt
from blip3v.bundle.tuning import Setting
from blip3v.errors import ProviderError, UsageError
from blip3v.runtime.checks import shown

if TYPE_CHECKING:
    from blip3v.runtime.backends import Backend

__all__ = [
    "AUTO",
    "GRAPHS",
    "GraphName",
    "backend_names",
    "choose_backend",
    "get_backend",
    "parse_backends",
    "settings_to_try",
    "stored_and_computed",
    "with_settings",
]

GraphName = Literal["video_encoder", "decoder"]
GRAPHS: tuple[GraphName, ...] = ("video_encoder", "decoder")
AUTO = "auto"
_PAIR = "+"
_PACKAGE = "blip3v.runtime.backends"
_NUMBERED_CUDA = re.compile(r"cuda[:.](\d+)", re.IGNORECASE | re.ASCII)  # one NVIDIA GPU of several


def backend_names() -> tuple[str, ...]:
    """Names of all back ends, installed or not, each for the first device that it runs on."""
    folder = importlib.import_module(_PACKAGE).__path__
    return tuple(sorted(info.name.replace("_", "-") for info in pkgutil.iter_modules(folder)))


def get_backend(name: str) -> Backend:
    """The back end ``NAME`` or ``NAME:DEVICE``, or two of those with a plus between them.

    Raises:
        UsageError: there is none of that name, or the device is an NVIDIA GPU with a number.
        ProviderError: it does not run on that device, or cannot be one of two.
    """
    if _PAIR in name:
        # Imports what back ends offer, which imports this module.
        from blip3v.runtime.paired import PairedBackend

        prefill, _, steps = name.partition(_PAIR)
        return PairedBackend(get_backend(prefill), get_backend(steps))
    engine, colon, device = name.partition(":")
    if engine not in backend_names():
        raise UsageError(f"back end {name!r} is unknown; allowed: {', '.join((AUTO, *backend_names()))}")
    module = importlib.import_module(f"{_PACKAGE}.{engine.replace('-', '_')}")
    backend: Backend = module.BACKEND
    _check_no_number(device)
    if not colon or device.lower() == backend.devices[0]:
        return backend
    if _kind(device) not in backend.devices or not hasattr(module, "on_device"):
        raise ProviderError(f"{engine} does not run on {device!r}; it runs on {', '.join(backend.devices)}")
    other: Backend = module.on_device(device.lower())
    return other


def parse_backends(text: str) -> dict[GraphName, str]:
    """Reads ``NAME`` or ``GRAPH=NAME,GRAPH=NAME``; a graph that is not named gets ``auto``.

    A name is ``auto`` or what ``get_backend`` takes.

    Raises:
        UsageError: an unknown graph or back end, or a graph named twice.
        ProviderError: a back end that does not run on the device behind its name.
    """
    if not isinstance(text, str):
        raise UsageError(f"backend is {shown(text)}; a name is expected: {', '.join((AUTO, *backend_names()))}")
    if "=" not in text:
        chosen: dict[GraphName, str] = dict.fromkeys(GRAPHS, text)
    else:
        chosen = {}
        for part in text.split(","):
            graph, _, name = part.partition("=")
            known = next((known for known in GRAPHS if known == graph.strip()), None)
            if known is None or known in chosen:
                raise UsageError(
                    f"back end {text!r}: {graph.strip()!r} is {'named twice' if known else 'not a graph'}; expected "
                    f"NAME, or GRAPH=NAME for one or both of {' and '.join(GRAPHS)}, separated by a comma"
                )
            chosen[known] = name.strip()
    for graph_name, name in chosen.items():
        if name != AUTO:
            get_backend(name)
        if _PAIR in name and graph_name != "decoder":
            raise UsageError(
                f"back end {name!r} is two engines, for prompts and for steps, and the video encoder runs on one",
                remedy=f"name it for the decoder alone: `backend='decoder={name}'`",
            )
    return {graph: chosen.get(graph, AUTO) for graph in GRAPHS}


def choose_backend(
    name: str,
    graph: GraphName,
    device: str = AUTO,
    target: Target = DEFAULT_TARGET,
    precision: GraphPrecision | None = None,
) -> Backend:
    """The back end for a graph.

    ``auto`` takes, of the installed back ends that run such a graph on the device, the one with the highest rank for
    it. Without a device it takes each back end on the first device that it runs on: any other has to be asked for.
    A back end that was asked for by name is taken, or refused with the reason; nothing else takes its place.

    Args:
        name: "auto", or of a back end as ``get_backend`` takes it.
        graph: which graph it is to run.
        device: "auto", or one that the back end has to run on, such as "cpu", "cuda", "gpu" or "gpu.1".
        target: the form of the graph.
        precision: of the graph; None: not known yet.

    Raises:
        UsageError: an unknown name or device, or two devices.
        ProviderError: it is not installed, is broken, or does not run on the device, or graphs of the target or
            precision; for ``auto``, none is installed.
    """
    everyone = [get_backend(each) for each in backend_names()]
    devices = sorted({known for backend in everyone for known in backend.devices})
    _check_no_number(device)
    if device != AUTO and _kind(device) not in devices:
        raise UsageError(f"no back end runs on device {device!r}; allowed: {', '.join((AUTO, *devices))}")
    if name != AUTO:
        return _named(_on(name, device), target, precision)
    fitting = [
        get_backend(_on(backend.name, device))
        for backend in everyone
        if device == AUTO or _kind(device) in backend.devices
    ]
    refusals = {backend.name: _refusal(backend, target, precision) for backend in fitting}
    able = [backend for backend in fitting if refusals[backend.name] is None]
    if not able:
        raise ProviderError("; ".join(filter(None, refusals.values())))
    able.sort(key=lambda backend: -backend.rank[graph])
    # One that is installed and broken is an error, not passed over. Without any, the first says what to install: of
    # those that need no hardware but a CPU, if no device was asked for.
    first = next((backend for backend in able if device != AUTO or "cpu" in backend.devices), able[0])
    backend = next((backend for backend in able if backend.is_installed()), first)
    backend.check_installed()
    return backend


def _named(name: str, target: Target, precision: GraphPrecision | None) -> Backend:
    backend = get_backend(name)
    for each in (*map(get_backend, name.split(_PAIR)), backend):
        refusal = _refusal(each, target, precision)
        if refusal is not None:
            raise ProviderError(refusal)
    backend.check_installed()
    return backend


def _on(name: str, device: str) -> str:
    """``name`` with ``device`` behind it, unless that is "auto" or there already."""
    if _PAIR in name:
        return _PAIR.join(_on(each, device) for each in name.split(_PAIR))
    engine, colon, own = name.partition(":")
    if device == AUTO or (colon and own.lower() == device.lower()):
        return name
    if colon:
        raise UsageError(f"back end {name!r} and device {device!r} name two devices; leave the device to auto")
    return f"{engine}:{device}"


def _refusal(backend: Backend, target: Target, precision: GraphPrecision | None) -> str | None:
    """Why a back end does not run graphs of this form; None: it does."""
    if target in backend.targets:
        return None if precision is None else backend.refusal(precision)
    others = [name for name in backend_names() if target in get_backend(name).targets]
    # Anywhere else it runs every target.
    here = " on Python 3.10, whose last ONNX Runtime is 1.23" if backend.name == "onnxruntime" else ""
    return (
        f"{backend.name} does not run graphs exported for {target}{here}; export with the target "
        f"{' or '.join(backend.targets)}, or choose the back end {' or '.join(others)}"
    )


def _check_no_number(device: str) -> None:
    """Raises for ``cuda:1``: which NVIDIA GPU is the first is decided for the whole process, by its environment."""
    match = _NUMBERED_CUDA.fullmatch(device)
    if match is not None:
        number = int(match[1])
        first = f"set CUDA_VISIBLE_DEVICES={number} in the environment before the program starts, and "
        raise UsageError(
            f"device {device!r} names an NVIDIA GPU by its number; every back end runs on the first that CUDA shows",
            remedy=f"{first if number else ''}choose `device='cuda'`",
        )


def _kind(device: str) -> str:
    """``gpu`` of ``gpu.1``, the second of its kind."""
    return device.lower().partition(".")[0]


def settings_to_try(backend: Backend, graph: GraphName, precision: GraphPrecision) -> tuple[dict[str, Setting], ...]:
    """Settings of the engine that may make a graph faster, each for ``with_settings``; () if it has none.

    What they compute may differ from the engine's usual results, but no more than rounding does.

    Args:
        backend: that is installed.
        graph: which graph it is to run.
        precision: of the graph.
    """
    module = _module_of(backend)
    if not hasattr(module, "settings_to_try"):
        return ()
    found: tuple[dict[str, Setting], ...] = module.settings_to_try(backend, graph, precision)
    return found


def with_settings(backend: Backend, settings: Mapping[str, Setting]) -> Backend:
    """The back end with its engine set otherwise; itself for none.

    Raises:
        UsageError: it has no such setting, or not with such a value.
    """
    if not settings:
        return backend
    module = _module_of(backend)
    if not hasattr(module, "with_settings"):
        raise UsageError(f"back end {backend.name} has no settings; {', '.join(settings)} cannot be set")
    other: Backend = module.with_settings(backend, settings)
    return other


def _module_of(backend: Backend) -> ModuleType:
    return importlib.import_module(f"{_PACKAGE}.{backend.name.partition(':')[0].replace('-', '_')}")


def stored_and_computed(precision: Precision, target: Target = DEFAULT_TARGET) -> str:
    """How a bundle's weights are stored, and what each back end computes them in, installed or not.

    Those are the back ends of the CPU, and for graphs that were exported for TensorRT that one too.
    """
    known = [backend for backend in map(get_backend, backend_names()) if target in backend.targets]
    known = [backend for backend in known if backend.devices[0] == "cpu" or is_tensorrt(target)]
    known.sort(key=lambda backend: -backend.rank["decoder"])
    computed = dict.fromkeys(str(backend.execution(spec)) for backend in known for spec in precision.graphs.values())
    return f"stored {precision.name}, computed {' or '.join(computed)}"
