"""docs/data-sets.md lists the data sets as the registry has them. To regenerate it: run this file."""

from __future__ import annotations

from pathlib import Path

from blip3v.data.readers import data_sets
from blip3v.data.records import DataSet

PAGE = Path(__file__).parents[2] / "docs" / "data-sets.md"
HEADING = "## The data sets\n"


def section(known: DataSet) -> str:
    about = known.about
    return "\n".join(
        (
            f"### {known.name}",
            "",
            f"{about.title}. From: {about.authors}.",
            "",
            f"- Licence: {about.licence}.",
            f"- Splits: {', '.join(f'`{split}`' for split in known.splits)}.",
            "",
            "```text",
            *about.layout,
            "```",
            "",
        )
    )


def with_sections(page: str) -> str:
    """The page up to the first data set, and then every data set."""
    start = page.index(HEADING)
    end = page.find("\n### ", start)
    return page[: end + 1 if end >= 0 else len(page)] + "\n".join(map(section, data_sets().values()))


def test_the_page_lists_the_data_sets_of_the_registry() -> None:
    page = PAGE.read_text("utf-8")
    assert with_sections(page) == page, f"run: python tests/data/{Path(__file__).name}"


if __name__ == "__main__":
    PAGE.write_text(with_sections(PAGE.read_text("utf-8")), "utf-8")
