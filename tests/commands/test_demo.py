from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from blip3v import cli
from blip3v.bench import default_film, write_default_clip
from blip3v.bench.child import child_environment
from blip3v.commands import demo
from blip3v.config import preset
from blip3v.data.film_files import read_film_set
from blip3v.data.samples import film_texts
from blip3v.errors import ArtifactMissingError, UsageError
from blip3v.folders import shipped_model
from blip3v.model.folder import save_model_folder
from blip3v.model.temporal import with_encoder
from blip3v.model.weights import random_model
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, train_tokenizer
from blip3v.video import PreprocessorConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
FRAMES = [{"index": 4, "time_s": 0.16}]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _demo(*arguments: str) -> Result:
    return CliRunner().invoke(demo.command, list(arguments), catch_exceptions=False)


def test_a_users_folder_is_left_alone(elsewhere: Path) -> None:
    own = elsewhere / "blip3v-demo"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not the demo's"):
        _demo()
    assert (own / "thesis.txt").read_text() == "mine"


def test_a_link_is_not_followed(elsewhere: Path) -> None:
    target = elsewhere / "target"
    target.mkdir()
    (target / demo._MARK).touch()
    (elsewhere / "blip3v-demo").symlink_to(target)
    with pytest.raises(UsageError, match="is not the demo's"):
        _demo()
    assert (target / demo._MARK).exists()


def test_the_demos_own_folder_is_created_from_scratch() -> None:
    demo._make_folder()
    (demo._FOLDER / "stale.json").touch()
    demo._make_folder()
    assert [path.name for path in demo._FOLDER.iterdir()] == [demo._MARK]


def test_the_default_film_is_the_committed_clip(elsewhere: Path) -> None:
    committed = next(clip for clip in read_film_set(EXAMPLES / "questions.json").clips if clip.file == "turn.mp4")
    assert default_film() == committed
    assert write_default_clip(elsewhere).name == committed.file
    assert {item.kind for item in demo._questions(committed)} == {"turn", "direction", "shape"}
    assert sum(item.needs_time for item in demo._questions(committed)) == 2


@pytest.mark.parametrize("package", demo._BARRED)
def test_the_process_that_asks_cannot_import_pytorch(package: str) -> None:
    code = f"sys.argv[1:] = ['--version']\ntry:\n    import {package}\nexcept ImportError:\n    print('barred')\n"
    barred, _, _ = demo._WITHOUT_TORCH.partition("from blip3v.cli")
    done = subprocess.run([sys.executable, "-c", barred + code], capture_output=True, text=True, check=True)
    assert done.stdout == "barred\n"


def test_a_step_that_fails_ends_the_demo_with_its_code(elsewhere: Path) -> None:
    for encoder in ("none", "gttm", "tokenlearner"):
        folder = elsewhere / "models" / f"tiny-{encoder}"
        folder.mkdir(parents=True)
        shutil.copy(shipped_model(encoder) / "config.json", folder)
    done = subprocess.run(
        [sys.executable, "-m", "blip3v", "demo", "--models", "models", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
    )
    assert done.returncode == 3, done.stderr
    assert "the model folder models/tiny-tokenlearner lacks model.safetensors" in done.stderr
    assert done.stderr.endswith("the demo ends here: blip3v export failed\n")
    message = "the demo ends here: blip3v export failed"
    assert json.loads(done.stdout) == {"error": {"type": "StepFailed", "message": message, "exit_code": 3}}


def test_missing_models_are_noticed_before_the_old_folder_is_deleted(elsewhere: Path) -> None:
    demo._make_folder()
    (demo._FOLDER / "kept").touch()
    with pytest.raises(ArtifactMissingError, match="nowhere/tiny-none does not exist"):
        _demo("--models", "nowhere")
    assert (demo._FOLDER / "kept").exists()


def test_with_stubs_a_wrong_answer_is_shown_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's process is a stub: it answers only the first question correctly."""
    clip, record = demo._make_folder()
    texts = iter(["up then right ", "up", "square"])

    def run(python: Sequence[str], arguments: Sequence[str], *, quiet: bool = False) -> str:
        return json.dumps({"text": next(texts), "frames": FRAMES})

    monkeypatch.setattr(demo, "_run", run)
    lines: list[str] = []
    answers = demo._ask(clip, record, lines.append)
    assert [answer.right for answer in answers] == [True, False, False]
    assert "  \u2717 up (wrong; the true answer is: left)" in lines
    assert "  \u2713 up then right  (correct)" in lines
    assert lines[-1] == "frames that the model saw: 4 (0.16 s)"


def test_help_has_two_examples() -> None:
    text = CliRunner().invoke(cli.group, ["demo", "--help"], prog_name="blip3v").stdout
    assert "  Examples:\n    blip3v demo\n    blip3v demo --json\n" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo(elsewhere: Path) -> None:
    """All real steps, with random weights: the answers are wrong, and the demo says so and succeeds."""
    tokenizer = train_tokenizer(film_texts(60), vocab_size_base=preset("tiny").text.num_base_tokens).to_str()
    for encoder in ("none", "gttm", "tokenlearner"):
        save_model_folder(
            elsewhere / "models" / f"tiny-{encoder}",
            random_model(with_encoder(preset("tiny"), encoder)),
            tokenizer,
            PreprocessorConfig(image_size=64),
            GenerationConfig(system_prompt=None, max_new_tokens=16),
            RELEASED_TEMPLATE,
        )
    done = subprocess.run(
        [sys.executable, "-m", "blip3v", "demo", "--models", "models", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parity"]["passed"]
    assert [len(answer["frames"]) for answer in found["answers"]] == [8, 8, 8]
    assert not any(answer["right"] for answer in found["answers"])
    assert [row["num_video_tokens"] for row in found["bench"]["rows"]] == [1024, 128, 32, 16]
    assert [row["weights"] for row in found["bench"]["rows"]] == [*["trained"] * 3, "untrained"]
    assert "parity with PyTorch fp32 (fp16)" in done.stderr
    assert "0 of 3 answers correct" in done.stderr
    assert found["bench"] == json.loads((elsewhere / "blip3v-demo" / "bench.json").read_text("utf-8"))
