"""The whole chain once: a model folder becomes a bundle, which answers about a real file like PyTorch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest
import torch
from export_models import small_config, write_folder

from blip3v import cli
from blip3v.bundle import Precision, open_bundle
from blip3v.data.film import make_film
from blip3v.data.mp4 import write_mp4
from blip3v.export import export_bundle, folder_source
from blip3v.model.folder import load_model_folder
from blip3v.runtime import GenerationOptions, VideoLM
from blip3v.runtime.opening import encoder_hash
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, Message, Tokenizer, build_prompt
from blip3v.video import PreprocessorConfig, load_pixels

QUESTION = "Which way does the red circle turn?"
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("end_to_end") / "model", small_config("gttm"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_mp4(make_film(3, "test"), path, height=240)
    return path


def reference_ids(folder: Path, film: Path) -> list[int]:
    """Greedy decoding with the PyTorch model from the pixels on, without a cache."""
    loaded = load_model_folder(folder)
    preprocessor = PreprocessorConfig.load(loaded.preprocessor)
    generation = GenerationConfig.load(loaded.generation)
    pixels, _ = load_pixels(film, num_frames=loaded.config.num_frames, config=preprocessor)
    prompt = build_prompt(Tokenizer.load(loaded.tokenizer), RELEASED_TEMPLATE, generation, [Message("user", QUESTION)])
    with torch.inference_mode():
        video = loaded.model.encode_video(torch.from_numpy(pixels)[None])
        ids = list(prompt.ids)
        for _ in range(NUM_TOKENS):
            logits = loaded.model(torch.tensor([ids]), torch.tensor([prompt.image_position]), video)
            ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt.ids) :]


def hash_by_references(bundle: Path) -> str:
    """The encoder's hash over the files that its graph actually reads; stored video tokens are bound to it."""
    graph = onnx.load(bundle / "onnx" / "video_encoder.onnx", load_external_data=False).graph
    entries = [entry for tensor in graph.initializer for entry in tensor.external_data]
    names = {entry.value for entry in entries if entry.key == "location"}
    assert names, "the weights are beside the graph"
    digest = hashlib.sha256()
    for name in ("video_encoder.onnx", *sorted(names)):
        content = (bundle / "onnx" / name).read_bytes()
        digest.update(f"onnx/{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def test_the_bundle_answers_as_pytorch_does(model_folder: Path, film: Path, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    result = export_bundle(
        folder_source(model_folder),
        tmp_path / "bundle",
        precision=Precision.parse("fp32"),
        progress=lambda stage, done=0, total=0: reports.append((stage, done, total)),
    )
    assert list(dict.fromkeys(stage for stage, *_ in reports))[:2] == ["check the weights", "export video encoder"]
    written = [(done, total) for stage, done, total in reports if stage == "write decoder"]
    assert written == [(done, len(written)) for done in range(1, len(written) + 1)]
    assert result.parity is not None
    assert result.parity.passed
    with VideoLM.open(result.path) as model:
        options = GenerationOptions(max_new_tokens=NUM_TOKENS, ignore_stop_token=True)
        answer = model.ask(film, QUESTION, options=options)
    bundle = open_bundle(result.path)
    assert encoder_hash(bundle) == hash_by_references(result.path)
    assert list(answer.token_ids) == reference_ids(model_folder, film)
    assert answer.usage.num_video_tokens == 128


def test_graphs_of_different_precisions_answer_together(model_folder: Path, film: Path, tmp_path: Path) -> None:
    """An fp16 video encoder feeds an fp32 decoder; its tokens are converted in between."""
    mixed = "video_encoder=fp16,decoder=fp32"
    path = tmp_path / "mixed"
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "-m", str(model_folder), "--precision", mixed, "-o", str(path)])
    assert not ended.value.code
    bundle = open_bundle(path)
    manifest = bundle.manifest
    assert manifest.precision == Precision.parse(mixed)
    assert bundle.embeddings().dtype == "float32"
    assert manifest.kv.bytes_per_token == 2 * 2 * 4 * 32 * 4
    frames, embeds = (manifest.graphs[name].inputs[0].dtype for name in ("video_encoder", "decoder"))
    assert (frames, embeds) == ("float16", "float32")
    assert "stored video_encoder=fp16,decoder=fp32, computed fp32" in (path / "README.md").read_text()
    report = json.loads((path / "reports" / "parity.json").read_text())
    assert report["schema_version"] == 2
    assert report["precision"] == mixed
    assert report["passed"]
    # The decoder is fed by an fp16 encoder. Activations are checked for graphs whose dtype can overflow.
    assert {name: limit["relative_error"] for name, limit in report["tolerances"].items()} == {
        "video_encoder": 2e-2,
        "decoder": 2e-2,
    }
    assert report["activations"]["layers"]
    assert all(name.startswith("video_encoder") for name in report["activations"]["layers"])
    with VideoLM.open(path) as model:
        assert model.encode(film).tokens.dtype == "float16"
        options = GenerationOptions(max_new_tokens=NUM_TOKENS, ignore_stop_token=True)
        answer = model.ask(film, QUESTION, options=options)
    assert answer.backend.stored == mixed
    assert list(answer.token_ids) == reference_ids(model_folder, film)
