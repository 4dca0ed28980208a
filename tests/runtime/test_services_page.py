"""The example of docs/services.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blip3v.runtime import VideoLM

ROOT = Path(__file__).parents[2]
FILM = ROOT / "examples" / "turn.mp4"


def test_the_example_streams_an_answer(bundle_path: Path, lm: VideoLM, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs/services.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    code = found[1].replace('"my-bundle"', repr(str(bundle_path))).replace('"film.mp4"', repr(str(FILM)))
    exec(code, {})
    printed = capsys.readouterr().out
    assert printed == lm.ask(FILM, "What happens first?").text != ""
