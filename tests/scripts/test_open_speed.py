"""The measurement of opening: its turns, its ratio, and what it needs."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from blip3v.errors import UsageError
from scripts import open_speed


class Graph:
    path = Path("manifest.json")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(open_speed, "open_bundle", lambda path: path)
    monkeypatch.setattr(open_speed, "graph_files", lambda opened: {"decoder": Graph()})
    return tmp_path


def test_sides_take_turns_and_the_ratio_is_within_them(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds, asked = cycle([8.0, 4.0, 16.0, 8.0]), list[str]()

    def child(path: Path, side: str) -> dict[str, Any]:
        asked.append(side)
        return {"open_s": next(seconds), "peak_rss_bytes": 2**30, "anonymous_bytes": 2**20}

    monkeypatch.setattr(open_speed, "find_packed", lambda graph: graph.path)
    monkeypatch.setattr(open_speed, "_child", child)
    open_speed.main(bundle, bundle / "out.json")
    found = json.loads((bundle / "out.json").read_text("utf-8"))
    assert asked == ["without", "with"] * 6
    assert len(found["turns"]) == 5
    assert found["ratio"] == 0.5
    assert found["packed"] == ["decoder"]
    assert "0.50x the time" in capsys.readouterr().out


def test_a_bundle_without_packed_weights_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_speed, "find_packed", lambda graph: None)
    with pytest.raises(UsageError, match=r"blip3v build .* --library onnxruntime"):
        open_speed.main(bundle, bundle / "out.json")


def test_what_a_process_says_of_itself() -> None:
    assert open_speed._anonymous_bytes() > 2**20
    with pytest.raises(UsageError, match=r"(?s)cannot be opened: .*nowhere does not exist"):
        open_speed._child(Path("nowhere"), "with")
