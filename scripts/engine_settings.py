"""Measures engines and their settings against each other, on the graphs of bundles: prefill, steps and video encoder.

Each turn opens one graph in a process of its own, with one engine and its properties, and runs all of its measures. The
turns of a round follow each other, so that each meets the same machine; a table gives medians over the rounds, and
ratios to the first engine of the graph within each round.

Seconds are those of the process on the CPU: with one thread (the default) what others do on the machine counts for
little, and nothing is said of how well an engine shares work out. Give ``--wall`` on a machine that nobody else uses.

    python scripts/engine_settings.py OUT.json --decoder BUNDLE --decoder BUNDLE --tower BUNDLE -r 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blip3v.bench.environment import describe_environment

_CONTEXTS = (160, 1152)
_STEPS = 8
_ROWS = 8
_OPENVINO = "openvino"
_clock = time.process_time
_PROPERTIES: dict[str, dict[str, Any]] = {
    "f32, groups 0": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    "f32, groups 32": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32},
    "bf16, groups 0": {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0},
    "bf16, groups 32": {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
}


def main() -> None:
    """Reads the arguments, runs the rounds, writes the results and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--decoder", action="append", default=[], type=Path, metavar="BUNDLE")
    parser.add_argument("--tower", action="append", default=[], type=Path, metavar="BUNDLE")
    parser.add_argument("-r", "--rounds", default=3, type=int)
    parser.add_argument("-t", "--threads", default=1, type=int)
    parser.add_argument("--wall", action="store_true", help="measure seconds as they pass")
    parser.add_argument("--only", action="append", default=[], help="names of settings; all by default")
    args = parser.parse_args()
    turns = [
        {"graph": graph, "bundle": str(bundle), "setting": name, "threads": args.threads, "wall": args.wall, **setting}
        for graph, bundles in (("decoder", args.decoder), ("video_encoder", args.tower))
        for bundle in bundles
        for name, setting in _settings().items()
        if not args.only or name in args.only
    ]
    found: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for turn in turns:
            found.append({**turn, "round": number, **_in_a_process(turn)})
            _save(args.out, args.wall, found)
            sys.stderr.write(f"{number} {turn['bundle']} {turn['setting']}: {found[-1]['seconds']}\n")
    print(table(found))


def _save(path: Path, is_wall: bool, found: Sequence[Mapping[str, Any]]) -> None:
    clock = "seconds as they pass" if is_wall else "seconds of the process on the CPU"
    turns = [{**turn, "bundle": Path(turn["bundle"]).name} for turn in found]
    data = {"clock": clock, "environment": describe_environment(), "turns": turns}
    path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def _settings() -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {"ONNX Runtime": {"engine": "onnxruntime", "properties": {}}}
    settings["OpenVINO, as opened"] = {"engine": _OPENVINO, "properties": {}}
    settings["OpenVINO, cpu-bf16"] = {"engine": f"{_OPENVINO}:cpu-bf16", "properties": {}}
    for name, properties in _PROPERTIES.items():
        settings[f"OpenVINO, {name}"] = {"engine": _OPENVINO, "properties": properties}
    return settings


def _in_a_process(turn: Mapping[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--turn", json.dumps(turn)], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Opens a graph and measures it; seconds by measure, and the peak of the process's memory in bytes."""
    from blip3v.bundle.reader import open_bundle
    from blip3v.runtime.backends import get_backend
    from blip3v.runtime.opening import graph_files

    global _clock
    _clock = time.perf_counter if turn["wall"] else time.process_time
    if turn["properties"]:
        _give_properties(turn["properties"])
    bundle = open_bundle(Path(turn["bundle"]))
    graph = graph_files(bundle)[turn["graph"]]
    backend = get_backend(turn["engine"])
    start_s = time.perf_counter()
    if turn["graph"] == "decoder":
        decoder = backend.open_decoder(graph, bundle.config.text, threads=turn["threads"], chunk=turn.get("chunk", 256))
        seconds = {"open": time.perf_counter() - start_s, **_decoder_seconds(decoder, bundle.config.text.hidden_size)}
    else:
        encoder = backend.open_video_encoder(graph, threads=turn["threads"])
        seconds = {"open": time.perf_counter() - start_s, **_tower_seconds(encoder, bundle.config)}
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"seconds": {name: round(value, 5) for name, value in seconds.items()}, "peak_kib": int(peak.split()[1])}


def _give_properties(properties: Mapping[str, Any]) -> None:
    """Makes every core of OpenVINO take these instead of those of the back end."""
    import openvino

    class Core(openvino.Core):  # type: ignore[misc,unused-ignore]
        def set_property(self, device: str, config: dict[str, Any]) -> None:
            config.pop("DYNAMIC_QUANTIZATION_GROUP_SIZE", None)
            super().set_property(device, {**config, **properties})

    openvino.Core = Core


def _decoder_seconds(decoder: Any, width: int) -> dict[str, float]:
    from blip3v.runtime.cancellation import Deadline

    rng = np.random.default_rng(0)
    embeds = (rng.normal(size=(max(_CONTEXTS), width)) * 0.02).astype(decoder.dtype)
    seconds: dict[str, float] = {}
    for count in _CONTEXTS:
        seconds |= _single_seconds(decoder, embeds[:count])
    session = decoder.session(_ROWS, _CONTEXTS[0] + _STEPS + 2)
    session.prefill([embeds[: _CONTEXTS[0]]] * _ROWS, Deadline())
    seconds[f"step of {_ROWS} rows at {_CONTEXTS[0]}"] = _best(lambda: session.step(embeds[:_ROWS]), _STEPS // 2)
    return seconds


def _single_seconds(decoder: Any, prompt_tD: Any) -> dict[str, float]:
    from blip3v.runtime.cancellation import Deadline

    count = len(prompt_tD)
    session = decoder.session(1, count + 2 * _STEPS)

    def prefill() -> None:
        session.truncate(0)
        session.prefill([prompt_tD], Deadline())

    seconds = {f"prefill {count}": _best(prefill, 3 if count < 1000 else 1)}
    seconds[f"step at {count}"] = _best(lambda: session.step(prompt_tD[:1]), _STEPS)
    session.close()
    return seconds


def _tower_seconds(encoder: Any, config: Any) -> dict[str, float]:
    from blip3v.runtime.cancellation import Deadline

    size = config.vision.image_size
    frames = np.random.default_rng(0).uniform(-1, 1, (1, config.num_frames, 3, size, size)).astype(np.float32)
    return {f"{config.num_frames} frames": _best(lambda: encoder.run(frames, Deadline()), 1)}


def _best(run: Callable[[], object], repeats: int) -> float:
    """Median of ``repeats`` runs after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start_s = _clock()
        run()
        times.append(_clock() - start_s)
    return statistics.median(times)


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each graph and setting, medians in milliseconds and ratios within a round."""
    lines = []
    for bundle in dict.fromkeys((turn["graph"], turn["bundle"]) for turn in found):
        turns = [turn for turn in found if (turn["graph"], turn["bundle"]) == bundle]
        measures = list(turns[0]["seconds"])
        lines += ["", f"{Path(bundle[1]).name}", "", "| | " + " | ".join(measures) + " | peak MiB |"]
        lines += ["|---|" + "---:|" * (len(measures) + 1)]
        first = {turn["round"]: turn["seconds"] for turn in turns if turn["setting"] == turns[0]["setting"]}
        for setting in dict.fromkeys(turn["setting"] for turn in turns):
            own = [turn for turn in turns if turn["setting"] == setting]
            cells = []
            for measure in measures:
                ms = statistics.median(turn["seconds"][measure] * 1e3 for turn in own)
                ratio = statistics.median(first[turn["round"]][measure] / turn["seconds"][measure] for turn in own)
                cells.append(f"{ms:,.0f} ({ratio:.2f}x)" if ms >= 100 else f"{ms:.1f} ({ratio:.2f}x)")
            peak = statistics.median(turn["peak_kib"] for turn in own) / 1024
            lines.append(f"| {setting} | " + " | ".join(cells) + f" | {peak:,.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--turn"]:
        print(json.dumps(run_turn(json.loads(sys.argv[2]))))
    else:
        main()
