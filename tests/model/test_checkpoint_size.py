"""Large checkpoints: memory holds one component at a time, and a checkpoint of the released size converts."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

import pytest
import torch
from released_files import RELEASED_NUM_PIECES, write_released_tokenizer
from small_checkpoint import RELEASED, made_up
from synthetic_checkpoint import released_shapes, write_checkpoint

from blip3v import config as blip3v_config
from blip3v.config import ModelConfig
from blip3v.model.checkpoint import open_checkpoint
from blip3v.model.temporal import with_encoder
from blip3v.model.weights import state_shapes

# Prints the peak memory of filling the components one at a time, then of filling all of them.
WALK = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_checkpoint_size import mid_preset
from blip3v import config
from blip3v.model import native
from blip3v.model.checkpoint import open_checkpoint
from blip3v.model.weights import empty_model, fill
from blip3v.runtime.memory import peak_rss_bytes
config.PRESETS["xgen-mm-vid"] = mid_preset()
native._REMAP_BYTES = 2**26  # as small relative to this model as the real one is to the released model
path = Path(sys.argv[1])
checkpoint = open_checkpoint(path, tokenizer=None if path.is_dir() else path.parent / "released")
model = empty_model(checkpoint.config)
lines = Path("/proc/self/status").read_text().splitlines()
base = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
for keep in (False, True):
    for name in ("vision_encoder", "vision_tokenizer", "lang_model"):
        part = model.get_submodule(name)
        fill(part, checkpoint.weights, name + ".")
        sum(parameter.sum() for parameter in part.parameters())
        if not keep:
            part.to("meta")
    print(peak_rss_bytes() - base)
"""


def mid_preset() -> ModelConfig:
    """1.4 GB in fp32, more than half of it in the language model. No time stamps: their values could not be zeros."""
    vision = dataclasses.replace(
        RELEASED.vision, hidden_size=576, intermediate_size=2152, num_layers=27, num_heads=16, image_size=384
    )
    text = dataclasses.replace(
        RELEASED.text, hidden_size=1024, intermediate_size=4096, num_layers=8, num_heads=16, num_kv_heads=16
    )
    return with_encoder(dataclasses.replace(RELEASED, vision=vision, text=text), "transformer")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("released", "F32"),
        pytest.param("released", "BF16", marks=pytest.mark.slow),
        pytest.param("native", "F32", marks=pytest.mark.slow),
    ],
)
def test_memory_holds_one_component_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    """The files are sparse, but once read they take memory like weights. Holding all at once must break the bound."""
    config = mid_preset()
    monkeypatch.setitem(blip3v_config.PRESETS, "xgen-mm-vid", config)
    shapes = state_shapes(config)
    folder = write_checkpoint(tmp_path / "released", shapes, dtype=dtype, shard_bytes=300_000_000)
    write_released_tokenizer(folder, num_pieces=RELEASED_NUM_PIECES)
    checkpoint = folder if kind == "released" else tmp_path / "checkpoint.pt"
    if kind == "native":
        with torch.serialization.skip_data():
            torch.save({name: torch.empty(shape) for name, shape in shapes.items()}, checkpoint)
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    # Returns freed tensors to the system at once, like the larger ones of the real model; the heap would keep them.
    heap = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-c", WALK, str(checkpoint), *path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | heap)
    assert done.returncode == 0, done.stderr
    one_at_a_time, all_at_once = map(int, done.stdout.split())
    sizes: dict[str, int] = {}
    for name, shape in state_shapes(open_checkpoint(folder).config).items():
        component = name.split(".")[0]
        sizes[component] = sizes.get(component, 0) + 4 * prod(shape)
    bound = 1.3 * max(sizes.values())
    assert max(sizes.values()) > 400e6
    assert one_at_a_time <= bound < all_at_once


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_checkpoint_of_the_released_size_converts() -> None:
    """Writes the 17.7 GB of the released checkpoint and converts it to fp16: 27 GB of disk, a few minutes."""
    with tempfile.TemporaryDirectory() as folder:  # deleted at the end, unlike pytest's own folder
        _convert_released_size(Path(folder))


def _convert_released_size(tmp_path: Path) -> None:
    source, folder = tmp_path / "released", tmp_path / "converted"
    script = Path(__file__).parents[2] / "scripts" / "synthetic_checkpoint.py"
    for command in (
        [sys.executable, str(script), str(source), "--seed", "5"],
        [sys.executable, "-m", "blip3v", "convert", str(source), "-o", str(folder), "--dtype", "fp16", "--json"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    num_left_out = sum(prod(item["shape"]) for item in values["unused_keys"])
    assert values["num_elements"] + num_left_out == 4_418_604_771
    # The largest tensor is the embedding, 394 MB in fp32; add a copy in fp16, its bytes, and Python with PyTorch.
    assert values["peak_rss_bytes"] < 2 * 2**30
    converted = open_checkpoint(folder).weights
    assert set(converted) == set(state_shapes(open_checkpoint(folder).config))
    shapes = released_shapes()
    for name, value in converted.items():
        expected = made_up(name, shapes[name])[: value.shape[0]]
        assert torch.equal(value, expected if name.endswith("inv_freq") else expected.half()), name
