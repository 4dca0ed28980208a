"""The tables of our pages that are made from committed results: each stands between two markers."""

from __future__ import annotations

__all__ = ["END", "replace_table", "start_marker"]

END = "<!-- end of table -->"


def start_marker(script: str) -> str:
    """Returns the line above the table that ``script`` makes: a file of ``scripts/``, or a path from the root."""
    return f"<!-- table: {script if '/' in script else f'scripts/{script}'} -->"


def replace_table(page: str, script: str, table: str) -> str:
    """Returns the text of a page with another table of ``script``.

    Raises:
        ValueError: the page lacks a marker.
    """
    before, start, rest = page.partition(start_marker(script))
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page lacks {start_marker(script)} or, after it, {END}")
    return f"{before}{start}\n\n{table.strip()}\n\n{end}{after}"
