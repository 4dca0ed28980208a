"""The examples of docs/services.md run."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_pages import blocks

from blip3v.runtime import VideoLM

ROOT = Path(__file__).parents[2]
FILM = ROOT / "examples" / "turn.mp4"


@pytest.mark.parametrize("index", [0, 1], ids=["streaming", "pixels"])
def test_the_examples_print_an_answer(
    bundle_path: Path, lm: VideoLM, capsys: pytest.CaptureFixture[str], index: int
) -> None:
    examples = [block.text for block in blocks(ROOT / "docs/services.md") if block.language == "python"]
    assert len(examples) == 2
    code = examples[index].replace('"my-bundle"', repr(str(bundle_path))).replace('"film.mp4"', repr(str(FILM)))
    exec(code, {})
    printed = capsys.readouterr().out.rstrip("\n")
    assert printed == lm.ask(FILM, "What happens first?").text != ""
