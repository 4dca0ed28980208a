"""What can be checked for nothing is checked before PyTorch is imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_bundle import write_fake_bundle

from blip3v.folders import MODEL_FILES, shipped_model

# Each case: its arguments, its exit code, and what its error says. The folder that it runs in contains: bundle, empty,
# model (a model folder of gttm without weights), run (with a checkpoint), weights.pt, and default folders of `export`.
CASES: dict[str, tuple[list[str], int, str]] = {
    "export: output exists": (["export", "-o", "empty"], 2, "empty exists"),
    "export: default output exists": (["export"], 2, "blip3v-tiny-tokenlearner-32tok-fp16 exists"),
    "export: output of random weights exists": (
        ["export", "--init", "random", "--tokens", "16"],
        2,
        "blip3v-tiny-tokenlearner-16tok-random-fp16 exists",
    ),
    "export: not a bundle": (["export", "-o", "model", "--force"], 2, "is not a bundle, so it is not replaced"),
    "export: below a file": (["export", "-o", "weights.pt/x"], 3, "a part of the path is a file"),
    "export: precision": (["export", "--precision", "banana"], 2, "precision 'banana' is unknown"),
    "export: unknown model": (
        ["export", "-m", "nowhere"],
        3,
        "nowhere does not exist; allowed: a model folder from `blip3v train` or `blip3v convert`, a released Hugging "
        "Face folder (model_type xgenmm), or a hub id (ORG/NAME); a .pt file goes through `blip3v convert` first",
    ),
    "export: a hub id without its organisation": (
        ["export", "-m", "xgen-mm-vid-phi3-mini-r-v1.5-128tokens-8frames"],
        3,
        " first; did you mean Salesforce/xgen-mm-vid-phi3-mini-r-v1.5-128tokens-8frames?",
    ),
    "export: empty folder": (["export", "-m", "empty"], 3, "empty is an empty folder; allowed"),
    "export: bundle": (["export", "-m", "bundle"], 3, "is a bundle, whose graphs cannot be read back"),
    "export: weights alone": (["export", "-m", "weights.pt"], 3, "weights.pt is a file; allowed: a model folder"),
    "export: another encoder": (["export", "-m", "model", "--encoder", "none"], 2, "holds the encoder gttm, not none"),
    "export: other tokens": (["export", "-m", "model", "--tokens", "7"], 2, "128 tokens from 8 frames, not 7"),
    "export: model and preset": (["export", "-m", "model", "--preset", "tiny"], 2, "--preset has no effect with"),
    "export: no weights": (["export", "--preset", "xgen-mm-vid"], 2, "no weights are shipped for the preset"),
    "export: not shipped": (["export", "--encoder", "mean"], 3, "no trained model with the encoder 'mean'"),
    "export: zero as a budget": (["export", "--max-accuracy-drop", "0"], 2, "accuracy-drop has no effect: precision"),
    "export: ranges without effect": (
        ["export", "--precision", "int8-weight", "--ranges", "minmax"],
        2,
        "precision int8-weight has no static ranges",
    ),
    "export: rounding without effect": (
        ["export", "--precision", "int8", "--rounding", "gptq"],
        2,
        "precision int8 stores no weights in blocks",
    ),
    "export: budget without effect": (
        ["export", "--precision", "int4", "--max-kl", "0.1"],
        2,
        "precision int4 is not mixed",
    ),
    "export: rotation without effect": (
        ["export", "--precision", "video_encoder=int8,decoder=fp16", "--rotation"],
        2,
        "does not quantise the decoder",
    ),
    "export: questions without effect": (
        ["export", "--precision", "int8", "--no-check", "--questions", "8"],
        2,
        "--questions has no effect with --no-check",
    ),
    "calibrate: output exists": (["calibrate", "-o", "empty"], 2, "empty already exists"),
    "calibrate: not a calibration": (["calibrate", "-o", "model", "--force"], 2, "so it is not a calibration"),
    "calibrate: default output exists": (["calibrate"], 2, "blip3v-tiny-tokenlearner-32tok-calibration already exists"),
    "calibrate: unknown model": (["calibrate", "-m", "nowhere"], 3, "nowhere does not exist"),
    "calibrate: data": (["calibrate", "--data", "empty"], 4, "empty has no questions.json"),
    "convert: unknown": (["convert", "nowhere"], 3, "nowhere does not exist"),
    "convert: output exists": (["convert", "model", "-o", "empty"], 2, "empty exists"),
    "convert: output is the source": (["convert", "model", "-o", "model", "--force"], 2, "is the source itself"),
    "convert: frames": (["convert", "model", "--frames", "4"], 2, "whose config.json sets the encoder and frames"),
    "convert: tokenizer": (["convert", "model", "--tokenizer", "x"], 2, "a tokenizer of its own"),
    "convert: no folder of a tokenizer": (
        ["convert", "weights.pt", "--tokenizer", "nowhere"],
        3,
        "nowhere does not exist; the tokenizer for a .pt file comes from a released Hugging Face folder, or its hub id",
    ),
    "convert: not a tokenizer": (
        ["convert", "weights.pt", "--tokenizer", "model"],
        3,
        "model has no tokenizer.model and no tokenizer_config.json; the tokenizer for",
    ),
    "bench: precision": (["bench", "--precision", "banana"], 2, "precision 'banana' is unknown"),
    "bench: back end": (["bench", "--backend", "banana"], 2, "back end 'banana' is unknown"),
    "bench: clip": (["bench", "--clip", "nowhere.mp4"], 7, "nowhere.mp4 is not a file"),
    "bench: models": (["bench", "--models", "nowhere"], 3, "nowhere/tiny-none does not exist"),
    "bench: not a bundle": (["bench", "bundle", "model"], 3, "model is not a bundle: it is a model folder; make"),
    "bench: preset": (["bench", "--preset", "tiny"], 2, "is measured with random weights; add --init random"),
    "bench: baseline": (["bench", "--baseline", "nowhere.json"], 2, "nowhere.json cannot be read as JSON"),
    "bench: plot": (["bench", "--plot", "bench.jpg"], 2, "its name has to end in .png, .svg, .pdf"),
    "bench: output": (["bench", "-o", "weights.pt"], 2, "weights.pt exists"),
    "eval: unknown": (["eval", "-m", "nowhere"], 3, "nowhere does not exist; allowed: a model folder"),
    "eval: bundle on a GPU": (
        ["eval", "-m", "bundle", "--device", "cuda"],
        2,
        "is evaluated on the device of its back end",
    ),
    "eval: back end": (["eval", "-m", "bundle", "--backend", "banana"], 2, "back end 'banana' is unknown"),
    "eval: model folder with a back end": (["eval", "-m", "model", "--backend", "openvino"], 2, "runs in PyTorch"),
    "eval: reference of a model folder": (["eval", "-m", "model", "--reference", "model"], 2, "is not a bundle"),
    "eval: own videos without a reference": (["eval", "-m", "bundle", "--data", "empty"], 2, "has no effect without"),
    "train: recipe": (["train", "--recipe", "nope"], 2, "recipe 'nope' is neither a file nor one of"),
    "train: needs a start": (["train", "--recipe", "tiny-single-frame"], 2, "starts from 'tiny-base'; name its folder"),
    "train: unknown start": (["train", "--recipe", "tiny-gttm", "--init", "nowhere"], 3, "nowhere does not exist"),
    "train: output exists": (["train", "--recipe", "tiny-base", "-o", "run"], 2, "run already contains a run"),
    "train: nothing to resume": (["train", "--recipe", "tiny-base", "-o", "empty", "--resume"], 2, "no checkpoint to"),
    "train: data": (
        ["train", "--recipe", "xgen-mm-vid-captions", "--init", "model", "--data", "no.json"],
        2,
        "no.json does not exist",
    ),
    "train: data without effect": (
        ["train", "--recipe", "tiny-base", "--data", "no.json", "--dry-run"],
        2,
        "--data has no effect: leave it out, or use a recipe that needs a list, such as xgen-mm-vid-captions",
    ),
    "train: data before a download": (
        ["train", "--recipe", "xgen-mm-vid-captions", "--init", "acme/video", "--data", "no.json"],
        2,
        "no.json does not exist",
    ),
    "eval: a benchmark without its data": (
        ["eval", "--benchmark", "nextqa"],
        2,
        "get NExT-QA (five-way) into one folder",
    ),
    "eval: a benchmark with no data there": (
        ["eval", "--benchmark", "msvd-qa", "--data", "nowhere", "-m", "bundle"],
        2,
        "nowhere is not a folder; get MSVD-QA into one folder",
    ),
    "demo: models": (["demo", "--models", "nowhere"], 3, "nowhere/tiny-none does not exist"),
    "data: output exists": (["data", "-o", "empty"], 2, "empty already exists"),
    "verify: model folder": (["verify", "model"], 3, "make a bundle of it with `blip3v export -m model`"),
    "inspect: nothing": (["inspect", "nowhere"], 3, "nowhere does not exist"),
}

# All cases in one process: an import of PyTorch or of what comes with it ends the process.
RUN = """
import contextlib, io, json, sys

class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "accelerate"):
            raise SystemExit(f"{name} was imported by {sys.argv}")

sys.meta_path.insert(0, Barred())
from blip3v import cli
results = {}
for name, args in json.load(sys.stdin).items():
    sys.argv[1:] = args
    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = cli._run([*args, "--json"])
    results[name] = [code, json.loads(stdout.getvalue()), stderr.getvalue()]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    folder = tmp_path_factory.mktemp("early")
    write_fake_bundle(folder / "bundle")
    outputs = [f"blip3v-tiny-tokenlearner-32tok-{made}" for made in ("fp16", "calibration")]
    for name in ("empty", "run/checkpoint", *outputs):
        (folder / name).mkdir(parents=True)
    (folder / "blip3v-tiny-tokenlearner-16tok-random-fp16").mkdir()
    (folder / "weights.pt").touch()
    (folder / "model").mkdir()
    for file in MODEL_FILES:
        (folder / "model" / file).touch()
    (folder / "model" / "config.json").write_text((shipped_model("gttm") / "config.json").read_text("utf-8"), "utf-8")
    arguments = {name: args for name, (args, _, _) in CASES.items()}
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(arguments), capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_before_pytorch_is_imported(results: dict[str, list], case: str) -> None:
    """`export` imported torch for 6 to 9 s before it said that the folder exists; `bench` exported four bundles before
    it said that there is no such back end."""
    code, printed, stderr = results[case]
    _, expected, says = CASES[case]
    assert says in printed["error"]["message"]
    assert (code, printed["error"]["exit_code"]) == (expected, expected)
    assert stderr == f"error: {printed['error']['message']}\n"


def test_pytorch_would_have_been_noticed(tmp_path: Path) -> None:
    good = '{"x": ["export", "-o", "new"]}'
    done = subprocess.run([sys.executable, "-c", RUN], input=good, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "was imported by" in done.stderr
