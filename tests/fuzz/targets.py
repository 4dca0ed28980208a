"""What is fuzzed. A target prepares a folder once and returns the function that runs one seeded case.

A case returns if the input was taken, and raises a ``Blip3vError`` if it was refused. Anything else is a defect.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from film_files import numbered_picture, write_film
from mutations import mutated_bytes, mutated_json, odd_text, odd_value
from PIL import Image
from small_checkpoint import write_small
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config
from toy_parts import BACKENDS

from blip3v.bundle.verify import verify_bundle
from blip3v.model.checkpoint import open_checkpoint
from blip3v.model.convert import convert
from blip3v.runtime import GenerationOptions, VideoLM
from blip3v.video import load_clip

Case = Callable[[random.Random], None]
_FILM_THWC = np.random.default_rng(2).integers(0, 256, (5, 16, 16, 3), np.uint8)


def videos(folder: Path) -> Case:
    """Files of several containers with damaged bytes, decoded by path and from memory."""
    av.logging.set_level(av.logging.PANIC)
    originals = [
        write_film(folder / "h264.mp4", 12).read_bytes(),
        write_film(
            folder / "fragments.mp4", 12, container_options={"movflags": "frag_keyframe+empty_moov"}
        ).read_bytes(),
        write_film(folder / "h264.mkv", 12).read_bytes(),
        write_film(folder / "mjpeg.avi", 6, codec="mjpeg", pix_fmt="yuvj420p").read_bytes(),
        write_film(folder / "vp9.webm", 6, codec="libvpx-vp9").read_bytes(),
        *(_image_bytes(folder / name) for name in ("image.png", "image.jpg", "image.webp", "image.gif")),
    ]
    film = folder / "film"

    def case(rng: random.Random) -> None:
        data = mutated_bytes(rng.choice(originals), rng)
        film.write_bytes(data)
        load_clip(rng.choice((film, data)), num_frames=rng.choice((1, 4, 8)))

    return case


def _image_bytes(path: Path) -> bytes:
    Image.fromarray(numbered_picture(5)).save(path)
    return path.read_bytes()


def bundles(folder: Path) -> Case:
    """Bundles with a damaged, missing or additional file, half of them with hashes that match the damage."""
    config = toy_config()
    pristine = write_bundle(folder / "pristine", config, Weights.random(config.text))
    names = sorted(str(path.relative_to(pristine)) for path in pristine.rglob("*") if path.is_file())
    broken = folder / "broken"

    def case(rng: random.Random) -> None:
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(pristine, broken)
        name = rng.choice(names)
        _damage_file(broken / name, rng)
        if rng.random() < 0.7:
            _hash_again(broken, name)
        verify_bundle(broken)
        with VideoLM.open(broken, backend=rng.choice(BACKENDS), threads=1) as lm:
            lm.ask(_FILM_THWC, "which way?", options=GenerationOptions(max_new_tokens=3, timeout_s=10))

    return case


def _damage_file(path: Path, rng: random.Random) -> None:
    kind = rng.random()
    if kind < 0.03:
        path.unlink()
    elif kind < 0.06:
        path.with_name(rng.choice(("extra", ".hidden", "x.onnx", "é"))).write_bytes(path.read_bytes())
    elif path.suffix == ".json":
        path.write_text(mutated_json(path.read_text("utf-8"), rng), "utf-8", "surrogatepass")
    else:
        path.write_bytes(mutated_bytes(path.read_bytes(), rng))


def _hash_again(bundle: Path, name: str) -> None:
    """Writes the changed file's size and hash into the manifest, as an attacker would."""
    manifest, changed = bundle / "manifest.json", bundle / name
    if changed == manifest or not changed.exists():
        return
    values = json.loads(manifest.read_text("utf-8"))
    data = changed.read_bytes()
    values["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    manifest.write_text(json.dumps(values), "utf-8")


def checkpoints(folder: Path) -> Case:
    """Released folders and model folders with a damaged, missing or additional file, converted."""
    released = write_small(folder / "released")
    own = convert(open_checkpoint(released), folder / "own").path
    broken, output = folder / "broken", folder / "output"

    def case(rng: random.Random) -> None:
        for path in (broken, output):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(rng.choice((released, released, own)), broken)
        files = sorted(broken.iterdir())
        configs = [path for path in files if path.suffix == ".json"]
        _damage_file(rng.choice(configs if rng.random() < 0.5 else files), rng)
        convert(open_checkpoint(broken), output)

    return case


def prompts(folder: Path) -> Case:
    """Odd questions with odd options, asked, streamed and in a chat."""
    config = toy_config()
    lm = VideoLM.open(write_bundle(folder / "bundle", config, Weights.random(config.text)), threads=1)
    video = lm.encode(_FILM_THWC)

    def case(rng: random.Random) -> None:
        options = GenerationOptions(**_options(rng))
        question: Any = odd_value(rng) if rng.random() < 0.1 else odd_text(rng)
        match rng.randrange(4):
            case 0:
                lm.ask(video, question, options=options)
            case 1:
                with lm.stream(video, question, options=options) as stream:
                    for _ in zip(range(3), stream, strict=False):
                        pass
            case 2:
                lm.ask_batch([(video, question), (video, odd_text(rng))], options=options)
            case 3:
                with lm.chat(video) as chat:
                    chat.ask("which way?", options=GenerationOptions(max_new_tokens=2))
                    chat.ask(question, options=options)

    return case


def _options(rng: random.Random) -> dict[str, Any]:
    """Options that are right but for at most one."""
    options: dict[str, Any] = {"max_new_tokens": rng.randint(1, 4), "timeout_s": 20.0}
    if rng.random() < 0.5:
        options |= {"temperature": rng.choice((0.1, 1.0, 5.0)), "top_k": rng.randint(0, 9), "seed": rng.randrange(9)}
    if rng.random() < 0.3:
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed", "logprobs")
        options[rng.choice((*names, "timeout_s"))] = odd_value(rng)
    return options


TARGETS: dict[str, Callable[[Path], Case]] = {
    "videos": videos,
    "bundles": bundles,
    "checkpoints": checkpoints,
    "prompts": prompts,
}
