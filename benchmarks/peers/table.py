"""Writes the tables of docs/peers.md from the JSON of one or more runs of run.py.

    python benchmarks/peers/table.py benchmarks/results/peers-full-size.json benchmarks/results/peers.json docs/peers.md

It replaces what is between the page's two markers; a page that is not there is begun with them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.peer_list import ANSWERS, OURS, PARTS, PEERS, named
from benchmarks.peers.result import read_result
from benchmarks.peers.turns import ANSWER_TOKENS
from blip3v.errors import Blip3vError
from blip3v.publishing import write_file
from scripts.page_tables import END, replace_table, start_marker

__all__ = ["SCRIPT", "main", "tables"]

SCRIPT = "benchmarks/peers/table.py"
_TITLES = {"decoder": "Language model", "tower": "Vision tower", "answer": "An answer, from frames to its last token"}
_RESAMPLER = "Patch features of all frames. Ours also computes one block of the resampler, which a bundle cannot lack."


def main(*paths: Path) -> None:
    """Writes the page, the last of ``paths``, from the results before it."""
    *results, page = paths
    try:
        table = tables([read_result(result) for result in results])
        text = page.read_text("utf-8") if page.is_file() else _new_page()
        write_file(page, replace_table(text, SCRIPT, table))
    except (Blip3vError, ValueError) as error:
        raise SystemExit(str(error)) from error


def tables(results: Sequence[dict[str, Any]]) -> str:
    """The tables in Markdown: of each result its parts and what could not be run; then all versions."""
    environments: dict[str, Any] = {}
    for result in results:
        environments |= result["environments"]
    texts = [text for result in results for text in _of_one(result, alone=len(results) == 1)]
    return "\n\n".join([*texts, _versions(environments)])


def _of_one(result: dict[str, Any], *, alone: bool) -> Iterator[str]:
    if not alone:
        yield f"## {_count(result['setup']['layers'], 'decoder layer')}"
    yield _setup(result)
    for part in PARTS:
        if any(group["part"] == part for group in result["groups"]):
            yield _part(result, part)
    yield from _not_run(result)


def _new_page() -> str:
    return f"# Beside other stacks\n\n{start_marker(SCRIPT)}\n{END}\n"


def _setup(result: dict[str, Any]) -> str:
    setup = result["setup"]
    machines = sorted({_machine(group["environment"]) for group in result["groups"]})
    sizes = (
        f"{_count(setup['layers'], 'decoder layer')} with the head, {_count(setup['vision_layers'], 'vision layer')}"
    )
    return (
        f"Random weights in the widths of `{setup['shape']}`: {sizes}. {'; '.join(machines)}; "
        f"{_count(setup['threads'], 'thread')}, batch 1. Medians; in brackets how many times as long as ours of the "
        "same bits, which was measured in the same turns (median of the ratios within each turn). The last "
        "column of the language model is the cosine of some of its logits."
    )


def _machine(environment: dict[str, Any]) -> str:
    return str(environment.get("cpu") or environment.get("architecture"))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _part(result: dict[str, Any], part: str) -> str:
    columns = dict(_columns(result["setup"], part))
    lines = [
        f"### {_TITLES[part]}",
        "",
        *(line for text in _notes(result["setup"], part) for line in (text, "")),
        f"| | {' | '.join(columns.values())} | peak memory |{' logits beside ours |' if part == 'decoder' else ''}",
        f"|---|{'---:|' * (len(columns) + (2 if part == 'decoder' else 1))}",
    ]
    for ours in dict.fromkeys(OURS[part].values()):
        groups = [group for group in result["groups"] if (group["part"], group["ours"]) == (part, ours)]
        shown: set[str] = set()
        for group in reversed(groups):  # ours stands as it was measured last
            for name in group["peers"]:
                if name not in shown:
                    shown.add(name)
                    lines.append(_row(group, name, columns))
    return "\n".join(lines)


def _notes(setup: dict[str, Any], part: str) -> Iterator[str]:
    if part == "tower":
        yield _RESAMPLER
    if part == "answer":
        yield (
            f"The tower over {_count(setup['frames'], 'frame')}, a prompt of {min(setup['prompts'])} tokens (32 of "
            f"them the video's) and {ANSWER_TOKENS} new tokens, one after the other in each turn."
        )


def _columns(setup: dict[str, Any], part: str) -> Iterator[tuple[str, str]]:
    """Figures and their headings."""
    if part == "tower":
        yield "encode_s", f"{_count(setup['frames'], 'frame')}"
        return
    if part == "answer":
        yield "answer_s", "in all"
        yield "encode_s", "tower"
        yield "prefill_s", "prompt"
        yield "step_s", f"{ANSWER_TOKENS - 1} tokens"
        return
    for prompt in setup["prompts"]:
        yield f"prefill_{prompt}_s", f"prefill {prompt}"
        yield f"step_{prompt}_s", f"token at {prompt}"


def _row(group: dict[str, Any], name: str, columns: dict[str, str]) -> str:
    figures = group["summary"][name]
    cells = [_cell(figures[figure], is_ours=name == group["ours"]) for figure in columns]
    peak = group["peak_rss_bytes"].get(name)
    cells.append("" if peak is None else f"{peak / 2**30:.1f} GiB")
    if "cosine_to_ours" in group:
        cosine = group["cosine_to_ours"].get(name)
        cells.append("" if cosine is None or name == group["ours"] else f"{cosine:.3f}")
    what = _what(name)
    return f"| {f'**{what}**' if name == group['ours'] else what} | {' | '.join(cells)} |"


def _what(name: str) -> str:
    return named(name).what if name in PEERS or name in ANSWERS else name


def _cell(figure: dict[str, float], *, is_ours: bool) -> str:
    seconds = figure["median_s"]
    text = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    return text if is_ours else f"{text} ({figure['ratio']:.2f}x)"


def _not_run(result: dict[str, Any]) -> list[str]:
    reasons = [
        f"| {_what(name)} | {part} | {_one_cell(reason)} |"
        for name, parts in result["not_run"].items()
        for part, reason in parts.items()
    ]
    return ["\n".join(["### Not run", "", "| | part | why |", "|---|---|---|", *reasons])] if reasons else []


def _one_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


# Of each environment's packages.
_SHOWN = (
    "onnxruntime",
    "onnxruntime-genai",
    "openvino",
    "openvino-genai",
    "optimum",
    "optimum-intel",
    "optimum-onnx",
    "llama_cpp_python",
    "nncf",
    "torch",
    "transformers",
)


def _versions(environments: dict[str, Any]) -> str:
    lines = ["### Versions", "", "| environment | packages |", "|---|---|"]
    for name, values in environments.items():
        packages = values["packages"]
        shown = [f"{package} {packages[package]}" for package in _SHOWN if package in packages]
        lines.append(f"| {name.replace('_', '-')} | {', '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
