"""The table of precisions: cells are resumed, failures are tried again, and the page shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_bundle import write_fake_bundle

from blip3v.bundle.reader import open_bundle
from scripts import plot_quantization, quantization_table
from scripts.page_tables import END, start_marker
from scripts.quantization_table import FORMS, StepError, Table, with_graphs

FORM = {form.name: form for form in FORMS}


def engine(backend: str, lost: int = 0, questions: int = 200) -> dict[str, Any]:
    points = 100 * lost / questions
    drop = {"lost": lost, "gained": 0, "points": points, "low": points - 1, "high": points + 1}
    films = {"num_questions": questions, "reference": 0.95, "graphs": 0.95 - lost / questions, "drop": drop}
    answers = {"num_tokens": 400, "tokens_agreeing": 400 - lost, "num_answers": 200, "answers_agreeing": 200 - lost}
    return {"backend": backend, "films": films, "answers": answers, "command": "/somewhere/blip3v eval"}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table whose commands write the files that they would write, and nothing else."""

    def run(self: Table, command: list[str]) -> str:
        calls.append(command[3])
        output = Path(command[command.index("-o") + 1])
        if command[3] == "eval":
            engines = [engine("onnxruntime"), engine("openvino", lost=3)]
            parts: dict[str, Any] = dict.fromkeys(("precision", "reference", "layers"), "")
            parts |= {
                "sizes": {"bundle": 4_000_000},
                "unavailable": {"other": f"opening {output} failed"},
                "engines": engines,
            }
            output.write_text(json.dumps(parts), "utf-8")
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / "manifest.json").write_text("{}", "utf-8")
        return ""

    calls: list[str] = []
    monkeypatch.setattr(Table, "_run", run)
    made = Table(tmp_path / "work", tmp_path / "result.json", 200, None)
    made.calls = calls  # type: ignore[attr-defined]
    return made


def cells(table: Table) -> list[dict[str, Any]]:
    values: dict[str, Any] = json.loads(table._output.read_text("utf-8"))
    return list(values["cells"])


def test_a_cell_is_measured_once_and_names_no_folder_of_this_machine(table: Table) -> None:
    for _ in range(2):
        table.measure("tiny-tokenlearner", FORM["int8"])
    assert table.calls == ["calibrate", "export", "eval"]  # type: ignore[attr-defined]
    (cell,) = cells(table)
    assert cell["form"] == "int8"
    assert [part["backend"] for part in cell["engines"]] == ["onnxruntime", "openvino"]
    assert str(table._work) not in json.dumps(cell)
    assert "/somewhere" not in json.dumps(cell)
    assert cell["commands"][0].startswith("blip3v export -m blip3v/models/tiny-tokenlearner --precision int8")


def test_a_form_that_fails_is_kept_with_its_message_and_tried_again(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise StepError("blip3v export: no such precision")

    with monkeypatch.context() as patch:
        patch.setattr(Table, "_export", fail)
        table.measure("tiny-tokenlearner", FORM["fp16"])
    assert cells(table)[0]["failed"] == "blip3v export: no such precision"
    table.measure("tiny-tokenlearner", FORM["fp16"])
    (cell,) = cells(table)
    assert "failed" not in cell


def test_other_weights_are_measured_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped models are trained anew now and then; figures of the old ones must not stay."""
    table.measure("tiny-tokenlearner", FORM["fp32"])
    monkeypatch.setattr(quantization_table, "_sha256", lambda path: "0" * 64)
    table.measure("tiny-tokenlearner", FORM["fp32"])
    (cell,) = cells(table)
    assert cell["weights_sha256"] == "0" * 64


def test_forms_of_modelopt_are_left_out_without_its_environment(table: Table) -> None:
    table.measure("tiny-tokenlearner", FORM["modelopt int8"])
    assert not table._output.exists()


def test_the_page_and_the_picture_show_the_cells(table: Table, tmp_path: Path) -> None:
    for model in ("tiny-tokenlearner", "tiny-gttm"):
        for form in ("fp32", "int8", "int4, no smoothing, round to nearest"):
            table.measure(model, FORM[form])
    page, picture = tmp_path / "page.md", tmp_path / "picture.png"
    page.write_text(f"before\n{start_marker('plot_quantization.py')}\nold\n{END}\nafter\n", "utf-8")
    for _ in range(2):
        plot_quantization.main(table._output, page, picture)
    text = page.read_text("utf-8")
    assert "| int8 | OpenVINO | 93.50 | 1.50 (0.50 to 2.50) | 99.25 | 98.50 | 4.00 |" in text
    assert "| *int4, no smoothing, round to nearest* | ONNX Runtime | 95.00 | 0.00 (-1.00 to 1.00) |" in text
    assert "### `tiny-gttm`" in text
    assert "old" not in text
    assert (text.startswith("before\n"), text.endswith("after\n")) == (True, True)
    assert picture.stat().st_size > 10_000


def test_a_bundle_takes_other_graphs(tmp_path: Path) -> None:
    """Each in a single file: the external data of the graph that it replaces must not stay behind."""
    first = write_fake_bundle(tmp_path / "first")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    weight = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = onnx.helper.make_graph([], "graph", [value], [value], [weight])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    with_graphs(first, {"decoder": tmp_path / "other.onnx"}, tmp_path / "second")
    opened = open_bundle(tmp_path / "second")
    assert (tmp_path / "second/onnx/decoder.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()
    assert [file for file in opened.manifest.files if file.startswith("onnx/decoder")] == ["onnx/decoder.onnx"]
    assert (tmp_path / "second/onnx/video_encoder.onnx").read_bytes() == (
        first / "onnx/video_encoder.onnx"
    ).read_bytes()
