"""Opening: an intact bundle, and every way in which one can be broken or hostile."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import CONFIG, embedding_table, rewrite

from blip3v.bundle import Precision, open_bundle, verify_bundle, write_embeddings
from blip3v.errors import (
    ArtifactError,
    ArtifactHashError,
    ArtifactMissingError,
    ArtifactVersionError,
)

HASHED = [
    "README.md", "chat_template.jinja", "config.json", "embeddings.safetensors", "generation.json", "onnx/decoder.data",
    "onnx/decoder.onnx", "onnx/video_encoder.onnx", "preprocessor.json", "reports/parity.json", "tokenizer.json",
]  # fmt: skip


def change_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_intact_bundle_opens(pristine_bundle: Path) -> None:
    opened = open_bundle(pristine_bundle)
    assert opened.config == CONFIG
    assert opened.manifest.kv.bytes_per_token == 2 * 6 * 4 * 32 * 2  # keys and values, layers, heads, width, bytes
    assert opened.generation.max_new_tokens == 16
    assert opened.preprocessor.image_size == 64
    assert opened.tokenizer.image_id == 608
    assert sorted(opened.manifest.files) == HASHED


def test_embeddings_are_mapped_and_read_only(pristine_bundle: Path) -> None:
    table_VD = open_bundle(pristine_bundle).embeddings()
    assert isinstance(table_VD, np.memmap)
    assert (table_VD.shape, table_VD.dtype) == ((611, 128), np.float16)
    np.testing.assert_array_equal(table_VD, embedding_table())
    with pytest.raises(ValueError, match="read-only"):
        table_VD[0, 0] = 1


def test_derived_files_may_come_and_go(bundle: Path) -> None:
    (bundle / "reports" / "bench.json").write_text("{}")
    (bundle / "engines" / "trt-11_sm90").mkdir(parents=True)
    (bundle / "engines" / "trt-11_sm90" / "decoder.plan").write_bytes(b"plan")
    assert open_bundle(bundle).config == CONFIG
    assert verify_bundle(bundle).ok


@pytest.mark.parametrize("name", HASHED)
def test_a_flipped_bit_is_found_by_open_and_verify(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 4
    (bundle / name).write_bytes(content)
    with pytest.raises(ArtifactHashError, match=Path(name).name):
        open_bundle(bundle)
    assert [(result.name, result.status) for result in verify_bundle(bundle).bad] == [(name, "changed")]


def test_a_flipped_bit_in_a_large_file_is_found_by_verify(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip3v.bundle.reader.HASH_ON_OPEN_BYTES", 63)
    content = (bundle / "onnx" / "decoder.data").read_bytes()
    (bundle / "onnx" / "decoder.data").write_bytes(content[:-1] + b"\0")
    assert open_bundle(bundle).config == CONFIG
    assert [result.name for result in verify_bundle(bundle).bad] == ["onnx/decoder.data"]


@pytest.mark.parametrize("name", HASHED)
def test_a_truncated_file_is_found(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-1])
    with pytest.raises(ArtifactHashError, match="were written"):
        open_bundle(bundle)
    assert [(result.name, result.status) for result in verify_bundle(bundle).bad] == [(name, "changed")]


@pytest.mark.parametrize("name", HASHED)
def test_a_missing_file_is_found(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(ArtifactMissingError, match=Path(name).name):
        open_bundle(bundle)
    assert [(result.name, result.status) for result in verify_bundle(bundle).bad] == [(name, "missing")]


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "Config.json", ".hidden", "onnx/evil.so", "onnx/other.onnx", "onnx/more.data", "reports/x.json"],
)
def test_an_extra_or_misnamed_file_is_found(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="does not list"):
        open_bundle(bundle)
    assert [(result.name, result.status) for result in verify_bundle(bundle).bad] == [(name, "extra")]


@pytest.mark.parametrize("name", ["docs", "onnx/deeper", ".svn"])
def test_an_extra_folder_is_found(bundle: Path, name: str) -> None:
    (bundle / name).mkdir()
    with pytest.raises(ArtifactError, match="folder that does not belong in a bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["config.json", "onnx/decoder.data", "engines"])
def test_a_symbolic_link_is_refused_wherever_it_points(bundle: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "elsewhere"
    if (bundle / name).exists():
        (bundle / name).rename(target)
    else:
        target.mkdir()
    (bundle / name).symlink_to(target)
    with pytest.raises(ArtifactError, match="symbolic link"):
        open_bundle(bundle)
    with pytest.raises(ArtifactError, match="symbolic link"):
        verify_bundle(bundle)


def test_a_pipe_is_refused_and_not_read(bundle: Path) -> None:
    (bundle / "README.md").unlink()
    os.mkfifo(bundle / "README.md")
    with pytest.raises(ArtifactError, match="is not a regular file"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "onnx/../../secret", "onnx/../config.json", "onnx\\decoder.data", "", ".",
     "onnx/other.data", "onnx/decoder.data.bin", "engines/x.plan", "onnx/a\n.data", "manifest.json"],
)  # fmt: skip
def test_a_manifest_cannot_name_files_elsewhere(bundle: Path, name: str) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    values["files"][name] = {"sha256": "0" * 64, "size_bytes": 1}
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="cannot be part of a bundle"):
        open_bundle(bundle)


def test_a_graph_cannot_be_elsewhere(bundle: Path) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    values["graphs"]["decoder"]["file"] = "../decoder.onnx"
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=r"onnx/decoder\.onnx is expected"):
        open_bundle(bundle)


@pytest.mark.parametrize("version", [0, 3, "2", None, True], ids=str)
def test_another_schema_version_is_refused(bundle: Path, version: object) -> None:
    change_manifest(bundle, schema_version=version)
    with pytest.raises(ArtifactVersionError, match="this blip3v reads 2; run `blip3v export` again"):
        open_bundle(bundle)


def test_inputs_and_outputs_that_contradict_config_and_precision_are_refused(bundle: Path) -> None:
    graphs = json.loads((bundle / "manifest.json").read_text())["graphs"]
    graphs["video_encoder"]["inputs"][0]["dtype"] = "float32"
    change_manifest(bundle, graphs=graphs)
    with pytest.raises(
        ArtifactError, match=r"inputs and outputs of video_encoder .* do not match config\.json at fp16"
    ):
        open_bundle(bundle)


BROKEN_MANIFESTS = {
    "empty": "",
    "list": "[]",
    "twice": '{"schema_version": 1, "schema_version": 1}',
    "deep": '{"a":' * 100_000,
    "endless-number": '{"schema_version": ' + "1" * 10_000 + "}",
    "nan": '{"schema_version": NaN}',
    "unknown-key": '{"schema_version": 2, "file": {}}',
    "huge": " " * (2**20 + 1),
    "not-utf-8": "\udcff",
}


@pytest.mark.parametrize("text", BROKEN_MANIFESTS.values(), ids=BROKEN_MANIFESTS)
def test_a_broken_manifest_is_one_clear_error(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        open_bundle(bundle)


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="blip3v export"):
        open_bundle(tmp_path)
    with pytest.raises(ArtifactMissingError, match="nothing does not exist"):
        open_bundle(tmp_path / "nothing")


def test_a_manifest_must_list_every_required_file(bundle: Path) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    del values["files"]["config.json"]
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactMissingError, match=r"does not list config\.json"):
        open_bundle(bundle)


FP32 = dataclasses.asdict(Precision.parse("fp32"))


@pytest.mark.parametrize(
    ("change", "what"),
    [({"num_video_tokens": 16}, "num_video_tokens"), ({"encoder": "gttm"}, "encoder"), ({"model": "other"}, "model"),
     ({"limits": {"max_context": 9}}, "max_context"), ({"precision": FP32}, "kv")],
    ids=["tokens", "encoder", "model", "limits", "kv"],
)  # fmt: skip
def test_a_manifest_that_contradicts_the_config_is_refused(bundle: Path, change: dict[str, object], what: str) -> None:
    change_manifest(bundle, **change)
    with pytest.raises(ArtifactError, match=f"{what} is .*config.json says"):
        open_bundle(bundle)


def test_a_tokenizer_of_another_model_is_refused(bundle: Path) -> None:
    text = (bundle / "tokenizer.json").read_text().replace("<|reserved_0|>", "<|reserved_x|>")
    values = json.loads(text)
    values["added_tokens"].append({**values["added_tokens"][-1], "id": 611, "content": "<more>"})
    rewrite(bundle, "tokenizer.json", json.dumps(values).encode())
    opened = open_bundle(bundle)
    with pytest.raises(ArtifactError, match="612 tokens"):
        _ = opened.tokenizer
    assert "612 tokens" in str(verify_bundle(bundle).problem)


def safetensors(header: str, num_data_bytes: int) -> bytes:
    text = header.encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_data_bytes)


SMALL = '{"embed_tokens": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}'
BAD_EMBEDDINGS = {
    "other-shape": (safetensors(SMALL, 12), "is float16 (2, 3); the bundle needs float16 (611, 128)"),
    "trailing-bytes": (safetensors(SMALL, 13), "needs 12 bytes; 13 follow"),
    "short": (safetensors(SMALL, 11), "needs 12 bytes; 11 follow"),
    "offset": (safetensors(SMALL.replace("[0, 12]", "[4, 16]"), 16), "offsets"),
    "overflow": (safetensors(SMALL.replace("[2, 3]", "[4611686018427387904, 4]"), 12), "needs"),
    "negative": (safetensors(SMALL.replace("[2, 3]", "[-2, -3]"), 12), "at least 1"),
    "true-shape": (safetensors(SMALL.replace("[2, 3]", "[true, 6]"), 12), "at least 1"),
    "flat": (safetensors(SMALL.replace("[2, 3]", "[6]"), 12), "two sizes"),
    "int": (safetensors(SMALL.replace("F16", "I16"), 12), "F16 or F32"),
    "list-dtype": (safetensors(SMALL.replace('"F16"', '["F16"]'), 12), "is not an embedding table"),
    "twice": (safetensors(SMALL[:-1] + "," + SMALL[1:], 12), "duplicate key"),
    "other-name": (safetensors(SMALL.replace("embed_tokens", "wte"), 12), "only embed_tokens"),
    "not-json": (safetensors("{", 12), "is not an embedding table"),
    "list": (safetensors("[]", 12), "is not a JSON object"),
    "huge-header": (b"\xff" * 8, "its header would have"),
    "cut-header": (safetensors(SMALL, 0)[:20], "ends inside"),
    "empty": (b"", "its header"),
}


@pytest.mark.parametrize(("content", "message"), BAD_EMBEDDINGS.values(), ids=BAD_EMBEDDINGS)
def test_hostile_embeddings_are_refused(bundle: Path, content: bytes, message: str) -> None:
    rewrite(bundle, "embeddings.safetensors", content)
    opened = open_bundle(bundle)
    with pytest.raises(ArtifactError) as caught:
        opened.embeddings()
    assert message in str(caught.value)
    assert not verify_bundle(bundle).ok


def test_external_data_belongs_to_the_graph_whose_name_it_starts_with(pristine_bundle: Path) -> None:
    opened = open_bundle(pristine_bundle)
    assert opened.graph_files("decoder") == ["onnx/decoder.onnx", "onnx/decoder.data"]
    assert opened.graph_files("video_encoder") == ["onnx/video_encoder.onnx"]


def test_embeddings_of_another_dtype_than_the_decoders_are_refused(bundle: Path) -> None:
    write_embeddings(bundle / "table", embedding_table().astype(np.float32))
    rewrite(bundle, "embeddings.safetensors", (bundle / "table").read_bytes())
    (bundle / "table").unlink()
    with pytest.raises(ArtifactError, match=r"is float32 \(611, 128\); the bundle needs float16"):
        open_bundle(bundle).embeddings()


def test_a_chat_template_that_is_too_large_is_refused(bundle: Path) -> None:
    rewrite(bundle, "chat_template.jinja", b"a" * 70_000)
    with pytest.raises(ArtifactError, match="at most 65536"):
        open_bundle(bundle)
