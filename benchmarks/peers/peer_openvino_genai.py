"""OpenVINO GenAI on models exported by optimum-intel; the vision tower by OpenVINO itself, quantised by nncf.

``form`` is ``int8`` (weights per channel) or ``int4`` (in groups of 128, the first and last matrix in int8), or
``tower-int8``: weights and activations of the tower, with ranges from random frames. ``engine`` is ``default``, or
``f32`` for that precision hint: OpenVINO's own is bf16 wherever the processor has such instructions, which is slower
on some.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import FRAME_SEED, Generated, run_tool

__all__ = ["open_decoder", "open_tower", "prepare"]

_FORMATS = {"int8": ["int8"], "int4": ["int4", "--group-size", "128", "--ratio", "1.0"]}
_FRAMES = 4  # that the ranges of the tower's activations are taken from


def prepare(form: str, checkpoint: Path, folder: Path) -> None:
    """Exports the decoder with its tokenizer, or the tower."""
    if form == "tower-int8":
        _export_tower(checkpoint / "vision", folder / "tower.xml")
        return
    command = Path(sys.executable).with_name("optimum-cli")
    words = ["export", "openvino", "--model", str(checkpoint / "text"), "--task", "text-generation-with-past"]
    run_tool([str(command), *words, "--weight-format", *_FORMATS[form], str(folder / "text")])


def open_decoder(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> _Decoder:
    """Opens the pipeline as it opens by default, without its reuse of equal prompts."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = sys.maxsize
    settings = _settings(engine, threads)
    return _Decoder(openvino_genai.LLMPipeline(str(folder / "text"), "CPU", scheduler_config=scheduler, **settings))


def open_tower(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> _Tower:
    """Compiles the tower."""
    import openvino

    return _Tower(openvino.Core().compile_model(str(folder / "tower.xml"), "CPU", _settings(engine, threads)))


def _settings(engine: str, threads: int) -> dict[str, Any]:
    hint = {"INFERENCE_PRECISION_HINT": "f32"} if engine == "f32" else {}
    return {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **hint}


def _export_tower(source: Path, file: Path) -> None:
    import nncf
    import numpy as np
    import openvino
    import torch
    from transformers import SiglipVisionModel

    model = SiglipVisionModel.from_pretrained(source, torch_dtype=torch.float32).eval()
    side = model.config.image_size
    pixels = np.random.default_rng(FRAME_SEED).uniform(-1, 1, (_FRAMES, 1, 3, side, side)).astype(np.float32)

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values=pixel_values).last_hidden_state

    with torch.no_grad():
        graph = openvino.convert_model(torch.export.export(Features().eval(), (torch.from_numpy(pixels[0]),)))
    quantized = nncf.quantize(
        graph, nncf.Dataset(list(pixels)), subset_size=_FRAMES, model_type=nncf.ModelType.TRANSFORMER
    )
    openvino.save_model(quantized, str(file))


class _Decoder:
    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def generate(self, ids: Sequence[int], num_steps: int) -> Generated:
        """The pipeline's own loop, which chooses the tokens; each is timed as it arrives."""
        import numpy as np
        import openvino
        import openvino_genai

        times: list[float] = []

        class Clock(openvino_genai.StreamerBase):  # type: ignore[misc]
            def write(self, token: Any) -> Any:
                times.extend([time.perf_counter()] * (len(token) if isinstance(token, list) else 1))
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        config = openvino_genai.GenerationConfig(max_new_tokens=num_steps + 1, ignore_eos=True, do_sample=False)
        prompt = np.array([list(ids)], np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(prompt), openvino.Tensor(np.ones_like(prompt)))
        started_s = time.perf_counter()
        self._pipeline.generate(inputs, config, Clock())
        steps = [after - before for before, after in itertools.pairwise(times)]
        assert len(steps) == num_steps, f"{len(times)} tokens arrived, not {num_steps + 1}"
        return Generated(times[0] - started_s, steps, None)


class _Tower:
    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()

    def encode(self, frames_F3SS: Any) -> None:
        """Encodes one frame after the other."""
        for frame in frames_F3SS:
            self._request.infer([frame[None]])
