"""Measures blip3v beside other inference stacks: the same random weights, each in its own environment, in turns.

    python benchmarks/peers/run.py /tmp/peers benchmarks/results/peers.json
    python benchmarks/peers/run.py /tmp/peers trial.json --layers 2 --vision-layers 2 --peers ours-int4,genai-int4

The model has the widths of the 4B model and fewer layers, since peers of equal bits are in memory together. Peers are
measured beside ours of the same bits (fp16, computed in fp32, for 16 and 32) on the back end that ``auto`` takes, each
in a process that stays open: A B C, A B C, ... A ratio is the median over the turns of a peer's seconds by ours in the
same turn.

A peer that is in the JSON is not measured again unless ``--again`` is given; a new one is measured beside ours again.
What cannot be installed, prepared or run is in the JSON with the reason, and is tried again by the next run. What was
converted is kept in FOLDER/prepared: after a change to our export, delete FOLDER/prepared/ours-*.

Ours runs in the environment of this command. The others are made in FOLDER/envs with pip, and take 1 to 2 GB each;
``--layers 8`` needs about 20 GB of disk and 16 GB of memory in all. Measure on an idle machine.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import environments
from benchmarks.peers.checkpoint import cut_config, write_checkpoint
from benchmarks.peers.client import PeerError, Together, Worker, prepare
from benchmarks.peers.peer_list import ANSWERS, OURS, PARTS, PEERS, Peer, bits_of, parts_of
from benchmarks.peers.result import Result
from benchmarks.peers.turns import MIN_TURNS, Amounts, measure
from blip3v.bench.environment import describe_environment, load_average
from blip3v.config import PRESETS, ModelConfig
from blip3v.errors import Blip3vError, UsageError

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> None:
    """Measures what is not in the JSON yet, and writes it after each group of peers."""
    options = _parser().parse_args(words)
    try:
        _Run(options).everything()
    except Blip3vError as error:
        raise SystemExit(str(error)) from error
    print(options.output)


class _Run:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._work = options, options.folder.resolve()
        self._names, self._parts = _names(options.peers), _names(options.parts, PARTS, "part")
        self._amounts = Amounts(
            prompts=tuple(options.prompts), steps=options.steps, frames=options.frames, seconds=options.seconds
        )
        self._config = cut_config(options.shape, options.layers, options.vision_layers)
        self._checkpoint = self._work / "checkpoint"
        self._environment = describe_environment()
        self._threads = options.threads or self._environment["physical_cores"] or self._environment["usable_cpus"]
        _check_lengths(self._config, self._amounts)
        _check_parts(self._names, self._parts)
        self._result = Result(options.output, self._setup())

    def _setup(self) -> dict[str, Any]:
        text, vision, options = self._config.text, self._config.vision, self._options
        return {
            "shape": options.shape,
            "layers": text.num_layers,
            "vision_layers": vision.num_layers,
            "prompts": list(options.prompts),
            "steps": options.steps,
            "frames": options.frames,
            "threads": self._threads,
        }

    def everything(self) -> None:
        """Every group of peers that are compared with the same form of ours."""
        _say("write the checkpoint")
        write_checkpoint(self._checkpoint, self._config)
        for part in self._parts:
            for ours in dict.fromkeys(OURS[part].values()):
                names = [name for name in self._names if part in parts_of(name) and OURS[part][bits_of(name)] == ours]
                todo = [name for name in names if self._options.again or not self._result.has(name, part)]
                if todo:
                    self._group(part, ours, [ours, *(name for name in todo if name != ours)])

    def _group(self, part: str, ours: str, names: Sequence[str]) -> None:
        failed: dict[str, str] = {}
        opens: dict[str, Callable[[], Worker | Together]] = {}
        for name in names:
            try:
                opens[name] = self._ready(name, part)
            except PeerError as error:
                failed[name] = str(error)
        before = load_average()
        group: dict[str, Any] = {}
        if ours in opens:
            group, not_run = measure(part, ours, opens, self._amounts, _say)
            failed |= not_run
        if group:
            group["environment"] = self._environment
            group["load_average"] = {"before": before, "after": load_average()}
            for name in group["peers"]:
                self._result.forget(name, part)
        else:
            why = f"not measured: {ours}, which it is compared with, failed: {failed[ours]}"
            failed = dict.fromkeys(names, why) | failed
        self._result.add(group, failed, part)

    def _ready(self, name: str, part: str) -> Callable[[], Worker | Together]:
        """What opens a peer, once its environment and its weights are there."""
        if name not in ANSWERS:
            return self._peer_ready(name, part)
        tower = self._peer_ready(ANSWERS[name].tower, "tower")
        decoder = self._peer_ready(ANSWERS[name].decoder, "decoder")
        return lambda: Together(tower, decoder)

    def _peer_ready(self, name: str, part: str) -> Callable[[], Worker]:
        peer = PEERS[name]
        python, values = self._python(peer), self._result.values
        environment = peer.requirements or "blip3v"
        if environment not in values["environments"]:
            values["environments"][environment] = environments.describe(python, peer.requirements, self._work)
        _say(f"prepare {name}")
        seconds = prepare(python, peer, self._checkpoint, self._work, self._threads)
        if seconds:
            values["prepared_s"][f"{peer.file.stem} {peer.form}"] = round(seconds, 1)
        return functools.partial(Worker, python, peer, part, self._checkpoint, self._work, self._threads)

    def _python(self, peer: Peer) -> Path:
        if peer.requirements is None:
            return Path(sys.executable)
        _say(f"environment {peer.requirements}")
        return environments.environment_python(peer.requirements, self._work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoint, environments and converted weights go")
    parser.add_argument("output", type=Path, help="the JSON")
    every = ", ".join((*PEERS, *ANSWERS))
    parser.add_argument("--peers", default=every, help=f"separated by commas (default: {every})")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--shape", default="xgen-mm-vid", choices=PRESETS, help="widths (default: xgen-mm-vid)")
    parser.add_argument("--layers", type=_count, default=8, help="of the decoder (default: 8; the 4B model has 32)")
    parser.add_argument("--vision-layers", type=_count, help="of the tower (default: all)")
    parser.add_argument("--prompts", type=_count, nargs="+", default=[160, 1152], help="tokens (default: 160 1152)")
    parser.add_argument("--steps", type=_count, default=12, help="new tokens after a prompt (default: 12)")
    parser.add_argument("--frames", type=_count, default=8, help="of the tower (default: 8)")
    parser.add_argument(
        "--seconds", type=float, default=120, help=f"of each group, at least {MIN_TURNS} turns (default: 120)"
    )
    parser.add_argument("--threads", type=_count, help="of every stack (default: physical cores)")
    parser.add_argument("--again", action="store_true", help="measure the peers again that are in the JSON")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is given; at least 1 is needed")
    return value


def _names(text: str, allowed: Sequence[str] | None = None, what: str = "peer") -> list[str]:
    known = [*PEERS, *ANSWERS] if allowed is None else list(allowed)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(f"there is no {what} {', '.join(unknown) or repr(text)}; allowed: {', '.join(known)}")
    return names


def _check_lengths(config: ModelConfig, amounts: Amounts) -> None:
    longest = max(amounts.prompts) + amounts.steps
    if longest > config.text.max_context:
        raise UsageError(
            f"a prompt of {max(amounts.prompts)} tokens and {amounts.steps} steps need {longest} positions; the model "
            f"has {config.text.max_context}; give smaller --prompts or --steps"
        )


def _check_parts(names: Sequence[str], parts: Sequence[str]) -> None:
    for part in parts:
        if len(parts) == 1 and not any(part in parts_of(name) for name in names):
            raise UsageError(
                f"none of {', '.join(names)} has a {part} to measure; leave out --parts {part}, or name others"
            )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
