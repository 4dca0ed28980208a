"""ONNX Runtime on an NVIDIA GPU: fp16 decoders, and video encoders in fp16, fp32 or with integers for weights alone.

The KV cache stays on the GPU (``runtime/device_cache.py``). With every step the new embeddings go there and the logits
of one position of each row come back; tokens are chosen on the host. The device is the first that CUDA shows: choose
another with ``CUDA_VISIBLE_DEVICES``.

Nothing falls back to the CPU unseen. What the CUDA provider is known to lack is refused by precision, before anything
is opened; and a graph of which it leaves an operator of the model's arithmetic to the CPU is refused as it opens, by
where ONNX Runtime says that it put each node. (Its own option, ``session.disable_cpu_ep_fallback``, refuses the
arithmetic of shapes too, which the provider leaves to the CPU on purpose.)

Not seen on a GPU yet: all of it but the refusals. The session and its cache run in tests on the CPU's memory. A KV
cache in int8 is read by a kernel of its own for heads of 64, 128 or 256 values, each shared by 4 query heads or more;
for others ONNX Runtime widens all of it with each token.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections import Counter
from collections.abc import Mapping

import numpy as np

from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import Target
from blip3v.config import TextConfig
from blip3v.errors import ProviderError
from blip3v.extras import pip_command, pip_line
from blip3v.runtime import nvidia
from blip3v.runtime.backends import PREFILL_CHUNK, Execution, Footprint, GraphFile, GraphName
from blip3v.runtime.device_cache import DeviceCache
from blip3v.runtime.host_cache import cache_bytes
from blip3v.runtime.memory import HOST, Memory
from blip3v.runtime.onnxruntime_graph import (
    GPU_PACKAGE,
    OpenGraph,
    cache_dtype,
    load_onnxruntime,
    package_version,
    session_options,
)
from blip3v.runtime.onnxruntime_sessions import OnnxRuntimeDecoder, OnnxRuntimeVideoEncoder

__all__ = ["BACKEND", "PROVIDER", "OnnxRuntimeCudaBackend"]

PROVIDER = "CUDAExecutionProvider"
_log = logging.getLogger(__name__)
_SETTINGS = {
    "use_tf32": "0",  # fp32 is what it says
    "arena_extend_strategy": "kSameAsRequested",  # and not the next power of two: caches are most of what is asked for
    "cudnn_conv_algo_search": "HEURISTIC",  # and not a search with each new number of frames
}
_MAX_CHARS = 200  # of what ONNX Runtime says
# A guess: reading the file and copying it to the device.
_OPEN_S_PER_GIB = 1.0
# Operators that shapes, positions and times of frames are not computed with.
_OF_THE_MODEL = frozenset(
    {
        *("Attention", "GroupQueryAttention", "MultiHeadAttention", "Softmax", "Scan"),
        *("Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulNBits"),
        *("DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearConv", "QLinearMatMul"),
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"),
        *("SkipSimplifiedLayerNormalization", "DequantizeLinear", "QuantizeLinear"),
        *("Erf", "GatherElements", "Gelu", "QuickGelu", "ReduceMean", "Sigmoid", "Split", "Tanh", "Transpose"),
    }
)


class OnnxRuntimeCudaBackend:
    """See ``Backend``.

    Args:
        provider: of ONNX Runtime.
        device: whose memory holds the caches, and arrays on the GPU, as ONNX Runtime names it. Both are CUDA's except
            in tests.
    """

    name = "onnxruntime-cuda"
    devices: tuple[str, ...] = ("cuda",)
    targets: tuple[Target, ...] = ("onnxruntime",)
    rank: Mapping[GraphName, int] = {"video_encoder": 3, "decoder": 3}

    def __init__(self, provider: str = PROVIDER, device: str = "cuda") -> None:
        self._provider = provider
        self._device = device

    def is_installed(self) -> bool:
        """See ``Backend``. A second package of ONNX Runtime beside it is reported by the back end of the CPU."""
        if package_version(GPU_PACKAGE) is None or not nvidia.query().gpus:
            return False
        with contextlib.suppress(ProviderError):
            return self._provider in load_onnxruntime().get_available_providers()
        return False

    def check_installed(self) -> None:
        """See ``Backend``."""
        driver = nvidia.query()
        if not driver.gpus:
            raise ProviderError(
                f"{self.name} needs an NVIDIA GPU: {driver.problem}; install the driver, or choose the back end "
                "onnxruntime"
            )
        onnxruntime = load_onnxruntime()
        available = onnxruntime.get_available_providers()
        if self._provider not in available:
            plain = "onnxruntime" if package_version(GPU_PACKAGE) is None else GPU_PACKAGE
            raise ProviderError(
                f"this build of ONNX Runtime ({plain} {onnxruntime.__version__}) has no {self._provider}; it has "
                f"{', '.join(available)}; replace it: `{pip_command('uninstall', '-y', plain)}` and then "
                f"`{pip_line('cuda')}`"
            )
        problem = _cuda_problem()
        if problem is not None:
            install = pip_command("install", f"{GPU_PACKAGE}[cuda,cudnn]")
            cuda = f"CUDA {onnxruntime.cuda_version}".rstrip()
            raise ProviderError(
                f"ONNX Runtime {onnxruntime.__version__} cannot use the {driver.gpus[0].name}: {problem}; it needs "
                f"{cuda} and cuDNN 9, and the driver runs CUDA up to {driver.cuda}; install "
                f"both: `{install}`, or choose the back end onnxruntime"
            )

    def refusal(self, precision: GraphPrecision) -> str | None:
        """See ``Backend``."""
        advice = "export with the precision fp16, or choose the back end onnxruntime or openvino"
        if "int8" in (precision.weights, precision.activations):
            return (
                f"{self.name} does not run {precision.name}: ONNX Runtime's CUDA provider has no product of int8 by "
                f"int8, and would compute it in floats or on the CPU; {advice}"
            )
        if precision.cache is not None and precision.io != "float16":
            return (
                f"{self.name} does not run a decoder in {precision.name}: GroupQueryAttention of ONNX Runtime's CUDA "
                f"provider takes float16, and this one has {precision.io}; {advice}"
            )
        return None

    def execution(self, precision: GraphPrecision) -> Execution:
        """See ``Backend``."""
        return Execution(
            backend=self.name,
            engine="ONNX Runtime",
            version=package_version(GPU_PACKAGE),
            device="CUDA",
            dtype=_dtype(precision, precision.weights),
        )

    def layer_dtype(self, precision: GraphPrecision, weights: str, group_size: int | None, num_inputs: int) -> str:
        """See ``Backend``."""
        return _dtype(precision, weights)

    def footprint(self, graph: GraphFile) -> Footprint:
        """See ``Backend``. Weights pass through host memory; a Jetson's is its GPU's, and they stay there."""
        memory, size = self._memory(), graph.weights_bytes
        return Footprint(weights_bytes=size, memory=memory, host_bytes=0 if memory is HOST else size, caches=memory)

    def open_s(self, graph: GraphFile) -> float:
        """See ``Backend``."""
        return _OPEN_S_PER_GIB * graph.weights_bytes / 2**30

    def kv_bytes_per_token(self, text: TextConfig, graph: GraphFile) -> int:
        """See ``Backend``."""
        return cache_bytes(text, cache_dtype(graph), 1, 1)

    def open_video_encoder(self, graph: GraphFile, *, threads: int | None = None) -> OnnxRuntimeVideoEncoder:
        """See ``Backend``. ``threads`` are those of the few operators on the CPU."""
        return OnnxRuntimeVideoEncoder(self._open(graph, threads), self.execution(graph.precision), self._device)

    def open_decoder(
        self, graph: GraphFile, text: TextConfig, *, threads: int | None = None, chunk: int = PREFILL_CHUNK
    ) -> OnnxRuntimeDecoder:
        """See ``Backend``. ``threads`` are those of the few operators on the CPU."""
        new_cache = functools.partial(DeviceCache, device=self._device)
        opened, execution = self._open(graph, threads), self.execution(graph.precision)
        return OnnxRuntimeDecoder(opened, execution, text, chunk, new_cache, memory=self._memory(), gpu=self._device)

    def _memory(self) -> Memory:
        return HOST if self._device == "cpu" else nvidia.gpu_memory()

    def _open(self, graph: GraphFile, threads: int | None) -> OpenGraph:
        self.check_installed()
        refusal = self.refusal(graph.precision)
        if refusal is not None:
            raise ProviderError(refusal)
        options = session_options(threads)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        settings = _SETTINGS if self._provider == PROVIDER else {}
        opened = OpenGraph(graph, options, self._provider, settings)
        check_placement(opened, graph, self._provider)
        return opened


BACKEND = OnnxRuntimeCudaBackend()


def check_placement(opened: OpenGraph, graph: GraphFile, provider: str) -> None:
    """Raises unless ``provider`` computes all of the model's arithmetic.

    Args:
        opened: with the option that records where ONNX Runtime put each node.
        graph: its file.
        provider: the one that was asked for.

    Raises:
        ProviderError: it left an operator to another one.
    """
    elsewhere = Counter(
        node.op_type
        for part in opened.session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    )
    listed = ", ".join(f"{count} {name}" for name, count in elsewhere.most_common() if name in _OF_THE_MODEL)
    if listed:
        raise ProviderError(
            f"{graph.path.name}: {provider} has no kernel for {listed} of this form, which would run on the CPU; "
            "export with the precision fp16, or choose the back end onnxruntime"
        )
    _log.info("%s: on the CPU by choice of %s: %s", graph.path.name, provider, dict(elsewhere))


def _dtype(precision: GraphPrecision, weights: str) -> str:
    """Inputs by weights: integers are widened to what the inputs are as they are multiplied."""
    inputs = "fp16" if precision.io == "float16" and weights != "float32" else "fp32"
    stored = {"int8-block": "int8", "int4-block": "int4", "int8": "int8"}.get(weights)
    return inputs if stored is None else f"{inputs} by {stored}"


@functools.cache
def _cuda_problem() -> str | None:
    """Why ONNX Runtime cannot put a value into the GPU's memory, in its own words; None: it can."""
    onnxruntime = load_onnxruntime()
    # Loads CUDA and cuDNN where pip has put them, and prints what it does not find.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    try:
        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda")
    except RuntimeError as error:
        missing = [line for line in printed.getvalue().splitlines() if line.startswith("Failed to load")]
        return missing[0] if missing else " ".join(str(error).split())[-_MAX_CHARS:]
    return None
