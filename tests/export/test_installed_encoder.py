"""A temporal encoder from another installed package: found, configured, exported, and not needed for answering."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from export_models import small_config, write_folder

from blip3v import cli
from blip3v.bundle import open_bundle
from blip3v.errors import ConfigError
from blip3v.model.folder import open_model_folder
from blip3v.model.temporal import encoder_names, find_encoder, registry, temporal_settings, with_encoder, with_frames

CLIP = Path(__file__).parents[2] / "examples" / "turn.mp4"

# A recurrence, so that the exporter has to scan it, with its own setting and weight.
MODULE = """
from dataclasses import dataclass

import torch
from torch import nn

from blip3v.errors import ConfigError
from blip3v.model.temporal import EncoderSpec, TokenCounts
from blip3v.model.temporal.recurrence import Recurrence, no_output


@dataclass(frozen=True, kw_only=True)
class Settings:
    keep: float = 0.5

    def __post_init__(self):
        if not 0 <= self.keep < 1:
            raise ConfigError(f"keep is {self.keep}; a number from 0 to below 1 is needed")


class RunningMean(Recurrence):
    def __init__(self, config, settings):
        super().__init__(config, settings)
        self.keep = settings.keep
        self.initial_memory = nn.Parameter(torch.zeros(config.resampler.num_latents, config.vision.hidden_size))

    def start(self, x_BTND):
        return self.initial_memory.expand(x_BTND.shape[0], -1, -1).clone(), x_BTND.transpose(0, 1)

    def step(self, memory, frame):
        memory = self.keep * memory + (1 - self.keep) * frame
        return memory, no_output(memory)

    def finish(self, memory, outputs):
        return memory


ENCODER = EncoderSpec(
    settings=Settings,
    module=RunningMean,
    token_counts=lambda settings, clip: TokenCounts((clip.num_latents,)),
    presets={"tiny": Settings(keep=0.25)},
)
"""


def install(site: Path, package: str, encoders: dict[str, str], module: str = MODULE) -> Path:
    """Writes what pip leaves in site-packages."""
    name = package.replace("-", "_")
    metadata = site / f"{name}-1.2.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{name}.py").write_text(module)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    points = "".join(f"{key} = {value}\n" for key, value in encoders.items())
    (metadata / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{points}")
    return site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty site-packages folder for this process, with no entry points cached before or after."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    registry._installed.cache_clear()
    yield folder
    registry._installed.cache_clear()
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def running_mean(site: Path) -> Path:
    return install(site, "blip3v-running-mean", {"running-mean": "blip3v_running_mean:ENCODER"})


def blip3v(*args: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line with the packages in ``site``; its stderr ends with the heavy modules that it imported."""
    code = (
        "import sys\nfrom blip3v.cli import main\ntry:\n    main()\nfinally:\n"
        "    heavy = ('torch', 'onnx', 'blip3v_running_mean', 'blip3v.model.temporal.registry')\n"
        "    print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    paths = [str(site)] * (site is not None) + os.environ.get("PYTHONPATH", "").split(os.pathsep)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize("verb", ["export", "convert"])
def test_help_and_errors_list_its_name_without_importing_it(verb: str, running_mean: Path) -> None:
    done = blip3v(verb, "--help", site=running_mean)
    assert "llama-vid-content|running-mean]" in done.stdout
    assert done.stderr.strip() == "['blip3v.model.temporal.registry']"
    refused = blip3v(verb, *["x"] * (verb == "convert"), "--encoder", "runing-mean", site=running_mean)
    assert refused.returncode == 2
    assert "running-mean" in refused.stderr
    assert "running-mean" not in blip3v(verb, "--help").stdout


def test_the_help_of_all_verbs_does_not_look_for_encoders(running_mean: Path) -> None:
    done = blip3v("--help", site=running_mean)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_its_name_comes_after_the_built_in_ones(running_mean: Path) -> None:
    assert encoder_names() == (*registry.BUILT_IN, "running-mean")
    with pytest.raises(ConfigError, match=r"'x' is unknown; allowed: tokenlearner, .*, running-mean"):
        find_encoder("x")


def test_its_settings_are_read_by_its_own_file(running_mean: Path, tmp_path: Path) -> None:
    config = with_encoder(small_config(), "running-mean")
    assert (config.num_video_tokens, config.temporal.settings) == (128, {"keep": 0.25})
    assert with_frames(config, 3).temporal == config.temporal
    assert temporal_settings(with_encoder(config, "running-mean", keep=0.75)).keep == 0.75
    for options, says in [
        ({"kep": 0.5}, "kep has no effect on running-mean; did you mean 'keep'"),
        ({"keep": 1.5}, "running-mean: settings: keep is 1.5; a number from 0 to below 1"),
        ({"keep": "much"}, "running-mean: settings: keep is 'much'; float is expected"),
        ({"num_video_tokens": 32}, "running-mean cannot produce 32 tokens from 8 frames; allowed: 128"),
    ]:
        with pytest.raises(ConfigError, match=says):
            with_encoder(config, "running-mean", **options)  # type: ignore[arg-type]


def test_it_is_exported_with_parity_and_its_bundle_answers_without_it(
    running_mean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "model", with_encoder(small_config(), "running-mean", keep=0.75))
    bundle = tmp_path / "bundle"
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "-m", str(folder), "-o", str(bundle)])
    assert not ended.value.code
    manifest = open_bundle(bundle).manifest
    assert (manifest.encoder, manifest.num_video_tokens) == ("running-mean", 128)
    assert manifest.parity is not None
    assert manifest.parity["passed"] is True
    assert open_bundle(bundle).config.temporal.settings == {"keep": 0.75}

    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(running_mean)])
    registry._installed.cache_clear()
    answered = blip3v("ask", str(CLIP), "Which way does the red circle turn?", "-m", str(bundle), "--json")
    assert answered.returncode == 0, answered.stderr
    assert '"text"' in answered.stdout
    assert answered.stderr.strip().endswith("[]")
    with pytest.raises(ConfigError, match=r"config\.json: encoder 'running-mean' is unknown"):
        open_model_folder(folder)


def test_a_name_with_two_providers_is_refused_naming_both(running_mean: Path) -> None:
    install(
        running_mean, "other-encoders", {"running-mean": "other_encoders:ENCODER", "gttm": "other_encoders:ENCODER"}
    )
    assert encoder_names() == (*registry.BUILT_IN, "running-mean")
    with pytest.raises(ConfigError, match=r"'gttm' is provided by blip3v and by other-encoders 1\.2 \(other_encoders:"):
        find_encoder("gttm")
    with pytest.raises(ConfigError) as caught:
        find_encoder("running-mean")
    assert "blip3v-running-mean 1.2" in str(caught.value)
    assert "other-encoders 1.2" in str(caught.value)
    assert find_encoder("max")


@pytest.mark.parametrize(
    ("value", "module", "says"),
    [
        ("broken:ENCODER", "import no_such_module", "broken 1.2 .* cannot be loaded: No module named 'no_such_module'"),
        ("broken:ENCODERS", "", "cannot be loaded: module 'broken' has no attribute 'ENCODERS'"),
        ("broken:ENCODER", "ENCODER = 5", "is of type int; an EncoderSpec of blip3v.model.temporal.spec is expected"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(site: Path, value: str, module: str, says: str) -> None:
    install(site, "broken", {"broken-one": value}, module)
    with pytest.raises(ConfigError, match=says):
        find_encoder("broken-one")
