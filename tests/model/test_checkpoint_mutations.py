"""Every way in which a checkpoint was broken by hand, as one table: what is changed, and the error that names it.

Each row changes one thing in a copy of a small folder, opens it and reads every weight, as `convert` and `export` do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_checkpoint import EMBEDDING, TEXT, shrunk_preset, write_small
from synthetic_checkpoint import INDEX, PREFIX, TEMPORAL

from blip3v.errors import ArtifactError, ArtifactMissingError, Blip3vError, ConfigError
from blip3v.model.checkpoint import open_checkpoint
from blip3v.model.convert import convert

pytestmark = pytest.mark.usefixtures("small_preset")

Change = Callable[[Path], None]
GONE = object()  # the key is removed
PATCHES = "vision_encoder.embeddings.patch_embedding.weight"
WRITE = f"{TEMPORAL}ttm_unit.write_layer.mlp.3.weight"
FREQUENCIES = f"{TEMPORAL}pos_emb.inv_freq"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("mutations") / "released")


@pytest.fixture(scope="module")
def own(released: Path) -> Path:
    with shrunk_preset():
        return convert(open_checkpoint(released), released.with_name("own")).path


def read_all(folder: Path) -> None:
    weights = open_checkpoint(folder).weights
    for name in weights:
        weights[name]


def put(file: str, keys: str, value: object) -> Change:
    """Sets one value of a JSON file; ``keys`` are joined by dots."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        at = values
        *path, last = keys.split(".")
        for key in path:
            at = at[key]
        at[last] = value
        if value is GONE:
            del at[last]
        (folder / file).write_text(json.dumps(values))

    return change


def write(file: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return change


def remove(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def shard_of(folder: Path, name: str) -> Path:
    if (folder / INDEX).is_file():
        return folder / json.loads((folder / INDEX).read_text())["weight_map"][PREFIX + name]
    return folder / "model.safetensors"


def edit_bytes(name: str, edit: Callable[[bytes], bytes]) -> Change:
    """Changes the file that holds a tensor."""

    def change(folder: Path) -> None:
        shard = shard_of(folder, name)
        shard.write_bytes(edit(shard.read_bytes()))

    return change


def edit_header(name: str, edit: Callable[[dict[str, Any]], object]) -> Change:
    """Changes the entry of a tensor in its file's header, and not the data."""

    def rewrite(data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        edit(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[end:]

    return edit_bytes(name, rewrite)


def entry(name: str, **values: object) -> Change:
    return edit_header(name, lambda header: header[PREFIX + name].update(values))


def value(name: str, number: bytes) -> Change:
    """Overwrites the last fp32 value of a tensor that the model uses."""

    def rewrite(data: bytes) -> bytes:
        start = 8 + int.from_bytes(data[:8], "little")
        stored = json.loads(data[8:start])[PREFIX + name]
        row = 4 * stored["shape"][-1]
        at = start + stored["data_offsets"][0] + row - 4  # of the first row: the last rows of the vocabulary are unused
        return data[:at] + number + data[at + 4 :]

    return edit_bytes(name, rewrite)


def text(key: str, number: object) -> Change:
    return put("config.json", f"text_config.{key}", number)


def vision(key: str, number: object) -> Change:
    return put("config.json", f"vision_encoder_config.{key}", number)


def projector(key: str, number: object) -> Change:
    return put("config.json", f"vision_tokenizer_config.{key}", number)


def _rename(header: dict[str, Any]) -> None:
    header["vlm.ghost"] = header.pop(PREFIX + EMBEDDING)


def _add(header: dict[str, Any]) -> None:
    end = max(stored["data_offsets"][1] for name, stored in header.items() if name.startswith(PREFIX))
    header["vlm.ghost"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}


def _repeat(data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    text = data[8:end].rstrip()
    stored = json.loads(text)[PREFIX + EMBEDDING]
    text = text[:-1] + f', "{PREFIX}{EMBEDDING}": {json.dumps(stored)}}}'.encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


NAN, INFINITY, ONE = b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\x3f"
_NESTED = b'{"a":' * 100_000

# id, change, error, what it says
RELEASED: list[tuple[str, Change, type[Blip3vError], str]] = [
    # sizes
    ("a billion layers", text("num_hidden_layers", 10**9), ConfigError, "num_hidden_layers is 10{9}; at most 1024"),
    ("1000 layers", text("num_hidden_layers", 1000), ArtifactError, r"text.num_layers is 1000, and there are 12 tens"),
    ("one layer more", text("num_hidden_layers", 3), ArtifactError, r"missing lang_model\.model\.layers\.2\."),
    ("one layer less", text("num_hidden_layers", 1), ArtifactError, r"unknown lang_model\.model\.layers\.1\."),
    ("no layer", text("num_hidden_layers", 0), ConfigError, "num_hidden_layers is 0; at least 1"),
    ("a huge width", text("hidden_size", 10**12), ConfigError, "hidden_size is 10{12}; at most"),
    ("a large width", text("hidden_size", 2**17), ArtifactError, r"text.hidden_size is 131072, and .*embed_tokens"),
    ("a negative width", text("hidden_size", -64), ConfigError, "hidden_size is -64; at least 1"),
    (
        "a large MLP",
        text("intermediate_size", 2**17),
        ArtifactError,
        r"intermediate_size is 262144, and .*gate_up_proj",
    ),
    ("a large vocabulary", text("vocab_size", 2**17), ArtifactError, "text.vocab_size is 131072, and"),
    ("more ids than rows", text("initial_tokenizer_len", 9999), ConfigError, "9999 is larger than vocab_size"),
    (
        "heads that do not divide",
        text("num_attention_heads", 7),
        ConfigError,
        "config.json: .*text.num_heads, which is 7",
    ),
    ("KV heads that do not divide", text("num_key_value_heads", 3), ConfigError, "text.num_kv_heads, which is 3"),
    (
        "64 latents",
        projector("num_vis_tokens", 64),
        ArtifactError,
        r"num_latents is 64, and .*latents has shape \(128,",
    ),
    ("no latents", projector("num_vis_tokens", 0), ConfigError, "num_vis_tokens 0; an integer of at least 1"),
    ("latents by name", projector("num_vis_tokens", "all"), ConfigError, "num_vis_tokens 'all'"),
    ("another width of patches", projector("vis_feature_dim", 7), ConfigError, "vis_feature_dim 7, .*allowed: 48"),
    ("another width of text", projector("lang_embedding_dim", 7), ConfigError, "lang_embedding_dim 7, .*allowed: 64"),
    # numbers out of range
    ("theta below 0", text("rope_theta", -1), ConfigError, "text_config: rope_theta is -1; a finite number above 0"),
    ("theta of 0", text("rope_theta", 0), ConfigError, "rope_theta is 0; a finite number above 0"),
    ("theta as text", text("rope_theta", "10000"), ConfigError, "rope_theta is '10000'; float"),
    ("theta beyond any float", text("rope_theta", 10**400), ConfigError, "rope_theta is too large"),
    ("a window below 0", text("sliding_window", -5), ConfigError, "sliding_window is -5; at least 1"),
    ("a window of 0", text("sliding_window", 0), ConfigError, "sliding_window is 0; at least 1"),
    ("half a window", text("sliding_window", 1.5), ConfigError, "sliding_window is 1.5; int"),
    ("a window of true", text("sliding_window", True), ConfigError, "sliding_window is True; int"),
    ("eps of 0", text("rms_norm_eps", 0), ConfigError, "rms_norm_eps is 0; a finite number above 0"),
    ("eps that is 0 in fp32", text("rms_norm_eps", 1e-50), ConfigError, "rms_norm_eps is 1e-50; a finite number above"),
    ("no positions", text("max_position_embeddings", 0), ConfigError, "max_position_embeddings is 0; at least 1"),
    # settings that change the computation, or that nobody knows
    (
        "another activation",
        text("hidden_act", "relu"),
        ConfigError,
        "text_config has hidden_act 'relu', .*allowed: 'silu'",
    ),
    ("tied embeddings", text("tie_word_embeddings", True), ConfigError, "tie_word_embeddings True, .*allowed: False"),
    ("tied at the top", put("config.json", "tie_word_embeddings", True), ConfigError, "tie_word_embeddings True"),
    ("scaled rope", text("rope_scaling", {"type": "longrope"}), ConfigError, "rope_scaling .*longrope.*allowed: None"),
    ("new rope", text("rope_parameters", {"rope_type": "yarn"}), ConfigError, "rope_parameters .*allowed: None"),
    ("half rope", text("partial_rotary_factor", 0.5), ConfigError, "partial_rotary_factor 0.5, .*allowed: 1.0"),
    ("attention bias", text("attention_bias", True), ConfigError, "attention_bias True, .*allowed: False"),
    ("repetition penalty", text("repetition_penalty", 1.5), ConfigError, "repetition_penalty 1.5, .*allowed: 1.0"),
    ("quantised", text("quantization_config", {"bits": 4}), ConfigError, "quantization_config .* does not know"),
    ("an unknown setting", text("softcap", 30), ConfigError, "text_config has softcap 30, a setting that .* not know"),
    ("a misspelt setting", text("sliding_windw", 7), ConfigError, "sliding_windw 7, .* did you mean 'sliding_window'"),
    ("an unknown section", put("config.json", "audio_config", {}), ConfigError, "config.json has audio_config"),
    ("another language model", text("model_type", "llama"), ConfigError, "model_type 'llama', .*allowed: 'phi3'"),
    ("no language model", text("model_type", GONE), ConfigError, "model_type None, .*allowed: 'phi3'"),
    (
        "any-res",
        vision("image_aspect_ratio", "anyres"),
        ConfigError,
        "'anyres' with anyres_patch_sampling False; for video",
    ),
    ("a banana", vision("image_aspect_ratio", "banana"), ConfigError, "image_aspect_ratio 'banana'"),
    ("no aspect", vision("image_aspect_ratio", GONE), ConfigError, "image_aspect_ratio None"),
    ("padded any-res", vision("anyres_patch_sampling", True), ConfigError, "'pad' with anyres_patch_sampling True"),
    ("0 for false", vision("anyres_patch_sampling", 0), ConfigError, "anyres_patch_sampling 0"),
    ("another vision encoder", vision("model_name", "openai/clip"), ConfigError, "model_name 'openai/clip', .*siglip"),
    (
        "aspect of the projector",
        projector("image_aspect_ratio", "anyres"),
        ConfigError,
        "'anyres', .*allowed: 'pad' or",
    ),
    ("no text section", put("config.json", "text_config", GONE), ConfigError, "has no text_config; an object"),
    (
        "no vision section",
        put("config.json", "vision_encoder_config", GONE),
        ConfigError,
        "has no vision_encoder_config",
    ),
    (
        "vision section 7",
        put("config.json", "vision_encoder_config", 7),
        ConfigError,
        "has vision_encoder_config 7; an o",
    ),
    (
        "no projector",
        put("config.json", "vision_tokenizer_config", GONE),
        ConfigError,
        "has no vision_tokenizer_config",
    ),
    (
        "a null projector",
        put("config.json", "vision_tokenizer_config", None),
        ConfigError,
        "vision_tokenizer_config None",
    ),
    (
        "a text section that is a list",
        put("config.json", "text_config", [TEXT]),
        ConfigError,
        "text_config .*an object",
    ),
    ("another model", put("config.json", "model_type", "llava"), ArtifactError, "model_type 'llava'"),
    # the processor and the generation config
    ("not normalised", put("preprocessor_config.json", "do_normalize", False), ConfigError, "do_normalize False"),
    ("a center crop", put("preprocessor_config.json", "do_center_crop", True), ConfigError, "do_center_crop True"),
    (
        "another processor",
        put("preprocessor_config.json", "image_processor_type", "X"),
        ConfigError,
        "type 'X', .*Blip3",
    ),
    ("unknown of the processor", put("preprocessor_config.json", "gamma", 2.2), ConfigError, "gamma 2.2, a setting"),
    (
        "std of 0",
        put("preprocessor_config.json", "image_std", [0, 1, 1]),
        ConfigError,
        r"image_std is \(0.0, 1.0, 1.0\)",
    ),
    ("mean of 2", put("preprocessor_config.json", "image_mean", [2, 0, 0]), ConfigError, "image_mean is"),
    ("beams", put("generation_config.json", "num_beams", 5), ConfigError, "num_beams 5, .*allowed: 1"),
    ("sampling", put("generation_config.json", "do_sample", True), ConfigError, "do_sample True, .*allowed: False"),
    ("no new tokens", put("generation_config.json", "max_new_tokens", 0), ConfigError, "max_new_tokens is 0"),
    ("unknown of generation", put("generation_config.json", "magic", 1), ConfigError, "magic 1, a setting"),
    # JSON
    ("not JSON", write("config.json", b"{"), ConfigError, "cannot be read as JSON"),
    ("empty JSON", write("config.json", b""), ConfigError, "cannot be read as JSON"),
    ("bytes for JSON", write("config.json", b"\xff\xfe\x00"), ConfigError, "cannot be read as JSON"),
    ("a list for JSON", write("config.json", b"[]"), ConfigError, "a JSON object is expected"),
    ("nested JSON", write("config.json", _NESTED), ConfigError, "cannot be read as JSON"),
    ("NaN in JSON", write("config.json", b'{"model_type": NaN}'), ConfigError, "NaN is not a JSON number"),
    ("a key twice", write("config.json", b'{"model_type": 1, "model_type": 2}'), ConfigError, "appears twice"),
    ("an index that is not JSON", write(INDEX, b"weight_map"), ConfigError, "cannot be read as JSON"),
    ("an index without a map", put(INDEX, "weight_map", GONE), ArtifactError, "has no weight_map"),
    ("a list for a map", put(INDEX, "weight_map", ["a"]), ArtifactError, "has no weight_map"),
    ("an empty map", put(INDEX, "weight_map", {}), ArtifactError, "has no weight_map"),
    # files
    ("no index", remove(INDEX), ArtifactMissingError, "has neither"),
    ("no config", remove("config.json"), ArtifactMissingError, r"\.\.\. and no config.json; allowed: "),
    ("no tokenizer", remove("tokenizer.model"), ArtifactError, "tokenizer.model"),
    ("no shard", lambda folder: shard_of(folder, EMBEDDING).unlink(), ArtifactMissingError, "lacks model-000"),
    ("an empty shard", edit_bytes(EMBEDDING, lambda data: b""), ArtifactError, "not a complete safetensors file"),
    ("half a shard", edit_bytes(EMBEDDING, lambda data: data[: len(data) // 2]), ArtifactError, "not a complete"),
    ("a shard with more", edit_bytes(EMBEDDING, lambda data: data + b"\0" * 9), ArtifactError, "not a complete"),
    ("a huge header", edit_bytes(EMBEDDING, lambda data: b"\xff" * 7 + b"\x7f" + data[8:]), ArtifactError, "complete"),
    (
        "a header beyond the file",
        edit_bytes(EMBEDDING, lambda data: b"\0\0\0\1\0\0\0\0" + data[8:]),
        ArtifactError,
        "comp",
    ),
    ("a header that is no JSON", edit_bytes(EMBEDDING, lambda data: data[:8] + b"!" + data[9:]), ArtifactError, "comp"),
    # tensors
    ("a negative size", entry(EMBEDDING, shape=[-660, 64]), ArtifactError, "not a complete safetensors file"),
    ("a shape beyond any file", entry(EMBEDDING, shape=[2**62, 2**62]), ArtifactError, "not a complete"),
    ("another shape", entry(EMBEDDING, shape=[64, 660]), ArtifactError, rf"{EMBEDDING} has shape \(64, 660\)"),
    ("a flat shape", entry(EMBEDDING, shape=[660 * 64]), ArtifactError, rf"{EMBEDDING} has shape \(42240,\)"),
    ("a shape of text", entry(EMBEDDING, shape="660x64"), ArtifactError, "not a complete"),
    ("an offset below 0", entry(EMBEDDING, data_offsets=[-4, 168956]), ArtifactError, "not a complete"),
    (
        "offsets beyond the file",
        entry(EMBEDDING, data_offsets=[2**40, 2**40 + 168960]),
        ArtifactError,
        "not a complete",
    ),
    ("an unknown dtype", entry(EMBEDDING, dtype="F99"), ArtifactError, "not a complete"),
    ("integers", entry(EMBEDDING, dtype="I32"), ArtifactError, f"{EMBEDDING} is I32, expected one of F32, F16, BF16"),
    ("a renamed tensor", edit_header(EMBEDDING, _rename), ArtifactError, f"{EMBEDDING} is not in model-000"),
    ("an extra tensor", edit_header(EMBEDDING, _add), ArtifactError, r"vlm\.ghost of model-000.* is not in the index"),
    ("a tensor twice", edit_bytes(EMBEDDING, _repeat), ArtifactError, f"has vlm.{EMBEDDING} twice in its header"),
    # values
    ("NaN in an embedding", value(EMBEDDING, NAN), ArtifactError, f"{EMBEDDING} in .* are not finite: 1 of 38912"),
    ("infinity in a patch", value(PATCHES, INFINITY), ArtifactError, f"{PATCHES} in .* not finite: 1 of"),
    ("NaN in a small weight", value(WRITE, NAN), ArtifactError, f"{WRITE} in .* not finite: 1 of 32"),
    ("another frequency", value(FREQUENCIES, ONE), ArtifactError, f"{FREQUENCIES} in .* other frequencies"),
]

# our own model folder, converted from it
OWN: list[tuple[str, Change, type[Blip3vError], str]] = [
    (
        "text layers",
        put("config.json", "text.num_layers", 10**9),
        ConfigError,
        "text: num_layers is 10{9}; at most",
    ),
    (
        "more text layers",
        put("config.json", "text.num_layers", 1000),
        ArtifactError,
        "text.num_layers is 1000, and there",
    ),
    (
        "vision layers",
        put("config.json", "vision.num_layers", 1000),
        ArtifactError,
        "vision.num_layers is 1000, and the",
    ),
    (
        "resampler depth",
        put("config.json", "resampler.depth", 1000),
        ArtifactError,
        "resampler.depth is 1000, and there",
    ),
    (
        "temporal layers",
        put("config.json", "temporal.settings.num_layers", 1000),
        ArtifactError,
        r"temporal.settings.num_layers is 1000, and there are \d+ tensors vision_tokenizer.temporal_encoder",
    ),
    ("temporal layers by far", put("config.json", "temporal.settings.num_layers", 10**9), ConfigError, "at most 1024"),
    ("slots", put("config.json", "temporal.settings.num_slots", 10**18), ConfigError, "num_slots is 10{18}; at most"),
    ("more slots", put("config.json", "temporal.settings.num_slots", 9), ArtifactError, "initial_memory has shape"),
    ("latents", put("config.json", "resampler.num_latents", 10**5), ConfigError, "gttm cannot produce 128 tokens"),
    ("frames", put("config.json", "num_frames", 10**12), ConfigError, "num_frames is 10{12}; at most"),
    ("no frames", put("config.json", "num_frames", 0), ConfigError, "config.json: num_frames is 0; at least 1"),
    ("patch size of 0", put("config.json", "vision.patch_size", 0), ConfigError, "vision: patch_size is 0; at least 1"),
    (
        "vision eps",
        put("config.json", "vision.layer_norm_eps", -1e-6),
        ConfigError,
        "layer_norm_eps is -1e-06; a finite",
    ),
    ("theta", put("config.json", "text.rope_theta", -1), ConfigError, "text: rope_theta is -1; a finite"),
    ("window", put("config.json", "text.sliding_window", 0), ConfigError, "text: sliding_window is 0; at least 1"),
    ("context", put("config.json", "text.max_context", 0), ConfigError, "text: max_context is 0; at least 1"),
    ("an unknown key", put("config.json", "text.hidden_act", "relu"), ConfigError, "unknown key 'hidden_act'"),
    ("no section", put("config.json", "resampler", GONE), ConfigError, "lacks the key 'resampler'"),
    ("NaN in an embedding", value(EMBEDDING, NAN), ArtifactError, f"{EMBEDDING} in .* are not finite: 1 of"),
    ("another frequency", value(FREQUENCIES, ONE), ArtifactError, "other frequencies"),
    ("a template that is no text", write("chat_template.jinja", b"\xff"), ArtifactError, "cannot be read as text"),
    ("half the weights", edit_bytes(EMBEDDING, lambda data: data[: len(data) // 2]), ArtifactError, "not a complete"),
]


def _ids(rows: list[tuple[str, Change, type[Blip3vError], str]]) -> list[str]:
    return [row[0] for row in rows]


@pytest.mark.parametrize(("name", "change", "error", "says"), RELEASED, ids=_ids(RELEASED))
def test_a_broken_released_folder_is_refused_by_name(
    released: Path, tmp_path: Path, name: str, change: Change, error: type[Blip3vError], says: str
) -> None:
    """Of these, a billion layers built for hours, and twenty others converted without a word."""
    folder = shutil.copytree(released, tmp_path / "released")
    change(folder)
    with pytest.raises(error, match=says):
        read_all(folder)


@pytest.mark.parametrize(("name", "change", "error", "says"), OWN, ids=_ids(OWN))
def test_a_broken_model_folder_is_refused_by_name(
    own: Path, tmp_path: Path, name: str, change: Change, error: type[Blip3vError], says: str
) -> None:
    folder = shutil.copytree(own, tmp_path / "own")
    change(folder)
    with pytest.raises(error, match=says):
        read_all(folder)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(text("hidden_act", "silu"), id="the activation"),
        pytest.param(text("tie_word_embeddings", False), id="untied"),
        pytest.param(text("attention_dropout", 0.1), id="dropout, which is for training"),
        pytest.param(text("eos_token_id", 7), id="an id of the library's generation"),
        pytest.param(text("sliding_window", None), id="no window"),
        pytest.param(vision("anyres_grids", [[1, 2]]), id="grids of pictures"),
        pytest.param(projector("num_vis_tokens", 128), id="the number of latents"),
        pytest.param(put("config.json", "_name_or_path", "mine"), id="where it was loaded from"),
        pytest.param(
            put(
                "config.json",
                "vision_encoder_config",
                {"anyres_patch_sampling": True, "image_aspect_ratio": "none"},
            ),
            id="the other known pair",
        ),
        pytest.param(put("generation_config.json", "temperature", 0.05), id="temperature of greedy decoding"),
        pytest.param(remove("generation_config.json"), id="no generation config"),
    ],
)
def test_a_setting_that_changes_no_answer_is_accepted(released: Path, tmp_path: Path, change: Change) -> None:
    folder = shutil.copytree(released, tmp_path / "released")
    change(folder)
    read_all(folder)


@pytest.fixture(scope="module")
def few_latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("few") / "released", "gttm-32-latents")


@pytest.mark.parametrize("stated", [7, 64, 128])
def test_a_number_of_latents_that_the_tensors_contradict_is_refused(
    few_latents: Path, tmp_path: Path, stated: int
) -> None:
    """With 32 latents any number that ``config.json`` stated was overridden without a word."""
    folder = shutil.copytree(few_latents, tmp_path / "released")
    projector("num_vis_tokens", stated)(folder)
    with pytest.raises(ArtifactError, match=rf"num_latents is {stated}, and .*latents has shape \(32,"):
        open_checkpoint(folder)


@pytest.mark.parametrize("change", [projector("num_vis_tokens", 32), None], ids=["stated", "not stated"])
def test_32_latents_may_be_stated_or_not(few_latents: Path, tmp_path: Path, change: Change | None) -> None:
    folder = shutil.copytree(few_latents, tmp_path / "released")
    if change is not None:
        change(folder)
    assert open_checkpoint(folder).config.resampler.num_latents == 32
