"""Writes the table of docs/peers.md from the JSON of run.py.

    python benchmarks/peers/table.py benchmarks/results/peers.json docs/peers.md

It replaces what is between the page's two markers; a page that is not there is begun with them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.peer_list import OURS, PARTS, PEERS
from benchmarks.peers.result import read_result
from blip3v.errors import Blip3vError
from blip3v.publishing import write_file
from scripts.page_tables import END, replace_table, start_marker

__all__ = ["SCRIPT", "main", "tables"]

SCRIPT = "benchmarks/peers/table.py"
_TITLES = {"decoder": "Language model", "tower": "Vision tower"}
_RESAMPLER = "Patch features of all frames. Ours also computes one block of the resampler, which a bundle cannot lack."


def main(result: Path, page: Path) -> None:
    """Writes the page."""
    try:
        table = tables(read_result(result))
        text = page.read_text("utf-8") if page.is_file() else _new_page()
        write_file(page, replace_table(text, SCRIPT, table))
    except (Blip3vError, ValueError) as error:
        raise SystemExit(str(error)) from error


def tables(result: dict[str, Any]) -> str:
    """The tables in Markdown: each part, what could not be run, and the versions."""
    parts = [_part(result, part) for part in PARTS if any(group["part"] == part for group in result["groups"])]
    return "\n\n".join([_setup(result), *parts, *_not_run(result), _versions(result)])


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
        *([] if part == "decoder" else [_RESAMPLER, ""]),
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


def _columns(setup: dict[str, Any], part: str) -> Iterator[tuple[str, str]]:
    """Figures and their headings."""
    if part == "tower":
        yield "encode_s", f"{_count(setup['frames'], 'frame')}"
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
    what = PEERS[name].what if name in PEERS else name
    return f"| {f'**{what}**' if name == group['ours'] else what} | {' | '.join(cells)} |"


def _cell(figure: dict[str, float], *, is_ours: bool) -> str:
    seconds = figure["median_s"]
    text = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    return text if is_ours else f"{text} ({figure['ratio']:.2f}x)"


def _not_run(result: dict[str, Any]) -> list[str]:
    reasons = [
        f"| {PEERS[name].what if name in PEERS else name} | {part} | {_one_cell(reason)} |"
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


def _versions(result: dict[str, Any]) -> str:
    lines = ["### Versions", "", "| environment | packages |", "|---|---|"]
    for name, values in result["environments"].items():
        packages = values["packages"]
        shown = [f"{package} {packages[package]}" for package in _SHOWN if package in packages]
        lines.append(f"| {name.replace('_', '-')} | {', '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
