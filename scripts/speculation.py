"""Measures speculative decoding against plain decoding, in turns in one run, and that the answers are the same.

    blip3v train --recipe scripts/tiny_captions.toml --init blip3v/models/tiny-tokenlearner -o captions
    blip3v export -m captions/model --precision fp32 -o tiny-captions
    python scripts/speculation.py captions tiny-captions benchmarks/results/speculation.json
    python scripts/speculation.py forced BUNDLE benchmarks/results/speculation.json
    python scripts/speculation.py table benchmarks/results/speculation.json docs/benchmarks.md

``captions``: a model of the tiny preset describes films of the split test, one after another, with guesses from the
prompt alone, and from the prompt and the captions before. ``forced``: a bundle of any size, even of random weights,
writes a given answer whatever its logits say; each guess is the right token at a given rate, and another one otherwise.
``table``: writes the tables of both into the page.
"""

# Shapes: V logits.

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bench.environment import describe_environment, load_average
from blip3v.bundle.reader import open_bundle
from blip3v.data.film import make_film
from blip3v.data.samples import film_pixels
from blip3v.publishing import write_file
from blip3v.runtime import GenerationOptions, VideoLM, VideoTokens
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.generation import AnswerWriter, Sampler
from blip3v.runtime.request import Model, Request, checked_prompt
from blip3v.runtime.speculation import Drafter, NgramCounts, Propose, speculate
from scripts.page_tables import replace_table

SCRIPT = "speculation.py"
QUESTION = "Describe the film."
AHEAD = (2, 4, 6, 8)  # guesses at most, on captions
TRIES = 3  # of each caption
FORCED_AHEAD, RATES = (2, 4, 8), (0.0, 0.5, 0.7, 0.9, 1.0)
Run = tuple[list[int], float, int, int, int]  # tokens, seconds of the steps, runs, guesses, right ones


def main() -> None:
    """Adds the measurement to the JSON, in place of an earlier one of the same bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["captions", "forced", "table"])
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="the bundle and the JSON; for table the JSON and the page"
    )
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--films", type=int, default=200, help="for captions (default: 200)")
    parser.add_argument("--new-tokens", type=int, default=129, help="of an answer, for forced (default: 129)")
    parser.add_argument("-r", "--rounds", type=int, default=3, help="for forced (default: 3)")
    options = parser.parse_args()
    if options.what == "table":
        result, page = options.paths
        write_file(page, replace_table(page.read_text("utf-8"), SCRIPT, table(json.loads(result.read_text("utf-8")))))
        return
    bundle, output = options.paths
    report = json.loads(output.read_text("utf-8")) if output.is_file() else {"captions": [], "forced": []}
    before = load_average()
    how = {"backend": options.backend, "threads": options.threads}
    if options.what == "captions":
        measured = captions(bundle, options.films, **how)
    else:
        measured = forced(bundle, options.new_tokens, options.rounds, **how)
    entry = {"bundle": bundle.name, **how, "load_average": {"before": before, "after": load_average()}, **measured}
    entry["environment"] = describe_environment()
    others = [old for old in report[options.what] if any(old[key] != entry[key] for key in ("bundle", *how))]
    report[options.what] = [*others, entry]
    write_file(output, json.dumps(report, indent=2) + "\n")
    print(table(report))


def captions(bundle: Path, num_films: int, *, backend: str, threads: int | None) -> dict[str, Any]:
    """Describes each film plainly, with the prompt's n-grams alone, and with those of captions before.

    Each way with a number of guesses remembers its own captions, so none is helped by another one of the same film. The
    time is that of the fastest of some tries, after which the caption is remembered.
    """
    preprocessor = open_bundle(bundle).preprocessor
    num_frames = open_bundle(bundle).config.num_frames
    with ExitStack() as stack:
        lm = stack.enter_context(VideoLM.open(bundle, backend=backend, threads=threads))
        model = stack.enter_context(lm._owner.lease())
        memories = {ahead: NgramCounts() for ahead in AHEAD}
        runs: dict[str, list[Run]] = {}
        for seed in range(num_films):
            video = lm.encode_pixels(film_pixels(make_film(seed, "test"), num_frames, preprocessor))
            ways = [("plain", 0, None), ("prompt", 4, None)] + [(f"{n}", n, memories[n]) for n in AHEAD]
            for name, ahead, memory in ways[seed % len(ways) :] + ways[: seed % len(ways)]:
                request = _request(model, video, GenerationOptions(num_speculative_tokens=ahead))
                tries = []
                for _ in range(TRIES):
                    drafter = Drafter(NgramCounts() if memory is None else memory, request.ids)
                    tries.append(_decode(model, request, drafter.propose))
                drafter.finish(tries[0][0])
                runs.setdefault(name, []).append(_fastest(tries))
        rows = [
            _row(found, runs["plain"]) | {"ahead": ahead, "earlier_answers": memory is not None}
            for name, ahead, memory in ways
            for found in [runs[name]]
        ]
        return {"computed": lm.backend.computed, "num_films": num_films, "rows": rows}


def forced(bundle: Path, num_new_tokens: int, rounds: int, *, backend: str, threads: int | None) -> dict[str, Any]:
    """Writes one answer with guesses that are right at a given rate; the time is that of the fastest round."""
    config = open_bundle(bundle).config
    width = config.text.hidden_size
    tokens = np.random.default_rng(0).normal(0, 0.02, (config.num_video_tokens, width)).astype(np.float32)
    with VideoLM.open(bundle, backend=backend, threads=threads, allow_random=True) as lm, lm._owner.lease() as model:
        video = VideoTokens(tokens=tokens, frames=((0, None),), encoder=lm.encoder)
        asked = functools.partial(GenerationOptions, max_new_tokens=num_new_tokens, ignore_stop_token=True)
        plain_request = _request(model, video, asked())
        known = np.random.default_rng(1).integers(0, config.text.num_base_tokens, num_new_tokens).tolist()
        _decode(model, plain_request, None, known)  # the first run is slower
        runs: dict[tuple[int, float], list[Run]] = {}
        plain = []
        for _ in range(rounds):
            plain.append(_decode(model, plain_request, None, known))
            for ahead in FORCED_AHEAD:
                for rate in RATES:
                    request = _request(model, video, asked(num_speculative_tokens=ahead))
                    guesses = _damaged(known, rate, config.text.num_base_tokens, seed=2)
                    runs.setdefault((ahead, rate), []).append(_decode(model, request, guesses, known))
        best = [_fastest(plain)]
        rows = [_row(best, best) | {"ahead": 0, "rate": None}]
        rows += [_row([_fastest(each)], best) | {"ahead": ahead, "rate": rate} for (ahead, rate), each in runs.items()]
        prompt_tokens = plain_request.num_prompt_tokens
        return {"computed": lm.backend.computed, "prompt_tokens": prompt_tokens, "rounds": rounds, "rows": rows}


def table(report: dict[str, Any]) -> str:
    """The Markdown of the committed result."""
    lines: list[str] = []
    for entry in report["captions"]:
        lines += [
            f"{entry['num_films']} captions of `{entry['bundle']}`, {entry['computed']}:",
            "",
            "| guesses from | at most | right | tokens a run | same answers | times faster, sum | last half |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in entry["rows"]:
            source = "the prompt and earlier captions" if row["earlier_answers"] else "the prompt"
            lines.append(
                f"| {source if row['ahead'] else 'plain'} | {row['ahead']} | {_percent(row['right'])} "
                f"| {row['tokens_a_run']:.2f} | {row['same']} of {row['answers']} | {row['faster']:.2f} "
                f"| {row['faster_last_half']:.2f} |"
            )
        lines.append("")
    for entry in report["forced"]:
        rates = sorted({row["rate"] for row in entry["rows"] if row["rate"] is not None})
        lines += [
            f"`{entry['bundle']}` after {entry['prompt_tokens']} tokens, {entry['computed']}; "
            "times faster, and tokens a run, at a rate of right guesses:",
            "",
            "| guesses | " + " | ".join(f"{100 * rate:.0f} %" for rate in rates) + " |",
            "|---" * (len(rates) + 1) + "|",
        ]
        for ahead in sorted({row["ahead"] for row in entry["rows"] if row["ahead"]}):
            found = {
                row["rate"]: f"{row['faster']:.2f} ({row['tokens_a_run']:.1f})"
                for row in entry["rows"]
                if row["ahead"] == ahead
            }
            lines.append(f"| {ahead} | " + " | ".join(found[rate] for rate in rates) + " |")
        lines.append("")
    return "\n".join(lines)


def _request(model: Model, video: VideoTokens, options: GenerationOptions) -> Request:
    return model.first_request(video, checked_prompt(model, QUESTION, options), options)


class _ForcedSampler(Sampler):
    """Chooses a known answer, once it has looked at the logits as always."""

    def __init__(self, options: GenerationOptions, known: Sequence[int]) -> None:
        super().__init__(options)
        self._known = known

    def choose(self, logits_V: NDArray[np.float32], earlier: Collection[int]) -> int:
        """Returns the known token."""
        super().choose(logits_V, earlier)
        return self._known[len(earlier)]


def _decode(model: Model, request: Request, propose: Propose | None, known: Sequence[int] | None = None) -> Run:
    """One answer: without ``propose`` plainly, with ``known`` that one."""
    writer = AnswerWriter(model.tokenizer, request)
    if known is not None:
        writer._sampler = _ForcedSampler(request.options, known)
    deadline = Deadline()
    with closing(model.decoder.session(1, request.num_tokens)) as session:
        writer.push(session.prefill([model.embed_prompt(request)], deadline)[0])
        for _ in speculate(session, writer, model, deadline, propose or (lambda token_ids, limit: [])):
            pass
    return writer.token_ids, writer.steps_s, writer.num_steps, writer.num_draft_tokens, writer.num_accepted_tokens


def _damaged(known: Sequence[int], rate: float, num_ids: int, *, seed: int) -> Propose:
    """Guesses the known answer, each token with the probability ``rate`` and another one otherwise."""
    right = np.random.default_rng(seed).random(len(known)) < rate

    def propose(token_ids: Sequence[int], limit: int) -> list[int]:
        at = range(len(token_ids), min(len(token_ids) + limit, len(known)))
        return [known[i] if right[i] else (known[i] + 1) % num_ids for i in at]

    return propose


def _row(runs: list[Run], plain: list[Run]) -> dict[str, Any]:
    """Of one way beside the plain one: both in the same turns."""
    half = len(runs) // 2
    num_guesses, num_runs = sum(run[3] for run in runs), sum(run[2] for run in runs)
    return {
        "answers": len(runs),
        "same": sum(one[0] == other[0] for one, other in zip(runs, plain, strict=True)),
        "new_tokens": sum(len(run[0]) for run in runs),
        "runs": num_runs,
        "guesses": num_guesses,
        "right": sum(run[4] for run in runs) / num_guesses if num_guesses else None,
        "tokens_a_run": (num_runs + sum(run[4] for run in runs)) / num_runs,
        "steps_s": [run[1] for run in runs],
        "run_ms": statistics.median(1e3 * run[1] / run[2] for run in runs if run[2]),
        "faster": _ratio(runs, plain),
        "faster_median": statistics.median(b[1] / a[1] for a, b in zip(runs, plain, strict=True) if a[1]),
        "faster_last_half": _ratio(runs[half:], plain[half:]),
    }


def _fastest(runs: list[Run]) -> Run:
    return min(runs, key=lambda run: run[1])


def _ratio(runs: list[Run], plain: list[Run]) -> float:
    return sum(run[1] for run in plain) / sum(run[1] for run in runs)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


if __name__ == "__main__":
    main()
