"""The comparison of two commits: what counts as equal, what is refused, and that a changed checkout is detected."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from scripts import compare_commits
from scripts.compare_commits import CompareError, check_reportable, compare, open_side

ROOT = Path(__file__).parents[2]
MODEL = "tiny-tokenlearner"
FEW = ("--models", MODEL, "--precisions", "fp16", "--questions", "1")


def script(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/compare_commits.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def git(folder: Path, *words: str) -> str:
    person = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *person, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def copy_package(folder: Path) -> Path:
    """Creates a folder with this checkout's package and nothing else."""
    shutil.copytree(ROOT / "blip3v", folder / "blip3v", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in place of this one."""
    folder = tmp_path / "repository"
    (folder / "blip3v").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        (folder / "blip3v" / name).write_text("", "utf-8")
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "First")
    monkeypatch.setattr(compare_commits, "ROOT", folder)
    return folder


def verdicts(output: str) -> dict[str, str]:
    """The verdict in each line of the table."""
    lines = (re.split(r"\s{2,}", line.strip()) for line in output.splitlines() if MODEL in line)
    return {what: verdict for _, _, what, _, verdict in lines}


@pytest.mark.slow
def test_altered_weights_are_found_and_what_does_not_read_them_is_equal(tmp_path: Path) -> None:
    copy = copy_package(tmp_path)
    path = copy / "blip3v" / "models" / MODEL / "model.safetensors"
    weights = load_file(path)
    weights["vlm.lang_model.model.layers.5.self_attn.o_proj.weight"][3] *= 1.25
    save_file(weights, path)
    ran = script(".", copy, *FEW)
    assert ran.returncode == 1, ran.stderr
    found = verdicts(ran.stdout)
    assert {what for what, verdict in found.items() if verdict == "equal"} >= {"graphs (sha256)", "video tokens"}
    assert "first: onnx/decoder.data" in found["stored weights (sha256)"]
    assert re.match(r"[\d,]+ DIFFER, by up to .*; first: step 1", found["logits: steps"])
    assert "DIFFER" in found["questions: log-probabilities"]


@pytest.mark.slow
def test_altered_code_is_found(tmp_path: Path) -> None:
    copy = copy_package(tmp_path)
    path = copy / "blip3v" / "runtime" / "generation.py"
    code = path.read_text("utf-8")
    path.write_text(code.replace("scores_V.argmax()", "scores_V.argsort()[-2]"), "utf-8")
    assert path.read_text("utf-8") != code
    ran = script(".", copy, *FEW)
    assert ran.returncode == 1, ran.stderr
    found = verdicts(ran.stdout)
    assert found["logits"] == found["stored weights (sha256)"] == "equal"
    assert "DIFFER" in found["questions: token ids"]


@pytest.mark.slow
def test_a_commit_equals_itself_and_the_report_names_it(tmp_path: Path) -> None:
    checkout = copy_package(tmp_path / "checkout")
    (checkout / ".gitignore").write_text("__pycache__/\n", "utf-8")
    git(tmp_path, "init", "--quiet", str(checkout))
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "First")
    output = tmp_path / "new" / "report.json"
    ran = script(checkout, checkout, *FEW, "-o", output)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(output.read_text("utf-8"))
    assert report["equal"] is True
    assert report["base"]["commit"] == report["head"]["commit"] == git(checkout, "rev-parse", "HEAD")
    assert report["command"].startswith("python scripts/compare_commits.py ")
    assert report["environment"]["packages"].keys() >= {"onnxruntime", "torch", "onnx"}
    assert all(row["values"] and not row["differing"] for row in report["rows"])
    whats = {row["what"] for row in report["rows"]}
    assert whats >= {"video tokens", "logits: prefill", "chat: token ids", "batch: text", "long prompt: finish reason"}


def array(*values: float, dtype: str = "float32") -> NDArray[np.generic]:
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("base", "head", "differing", "distance"),
    [
        pytest.param(array(1, 2), array(1, 2), 0, None, id="equal"),
        pytest.param(array(1, 2), array(1, 2.5), 1, 0.5, id="one value"),
        pytest.param(array(0.0), array(-0.0), 1, 0.0, id="sign of zero"),
        pytest.param(array(float("nan")), array(float("nan")), 0, None, id="the same NaN"),
        pytest.param(array(1, 2), array(1, float("nan")), 1, None, id="a NaN"),
        pytest.param(array(1, 2), array(1), 2, None, id="shape"),
        pytest.param(array(1, 2), array(1, 2, dtype="float16"), 2, None, id="dtype"),
        pytest.param(array(1, 2, dtype="int64"), array(1, 9, dtype="int64"), 1, None, id="ids"),
        pytest.param(np.array(["red"]), np.array(["a red circle"]), 1, None, id="text"),
        pytest.param(np.array(["red"]), np.array(["red"]), 0, None, id="equal text"),
        pytest.param(np.array([""]), np.array(["red"]), 1, None, id="no text"),
    ],
)
def test_what_differs(
    base: NDArray[np.generic], head: NDArray[np.generic], differing: int, distance: float | None
) -> None:
    (row,) = compare("m", "fp16", {"logits|step 1": base}, {"logits|step 1": head})
    assert (row.what, row.differing, row.largest_difference) == ("logits", differing, distance)
    assert row.first == ("step 1" if differing else None)


def test_an_output_that_one_side_lacks_differs() -> None:
    both = {"text|1": np.array(["a"])}
    for base, head in ((both, both | {"text|2": array()}), (both | {"text|2": array()}, both)):
        (row,) = compare("m", "fp16", base, head)
        assert (row.differing, row.first) == (1, "2")


def test_a_commit_is_checked_out_and_its_worktree_removed(repository: Path, tmp_path: Path) -> None:
    with open_side("base", "HEAD", tmp_path) as side:
        assert side.commit == git(repository, "rev-parse", "HEAD")
        assert (side.checkout / "blip3v" / "__init__.py").is_file()
    assert not (tmp_path / "base").exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_report_names_only_what_ran(repository: Path, tmp_path: Path) -> None:
    with open_side("head", str(repository), tmp_path) as side:
        check_reportable(side)
    (repository / "blip3v" / "new.py").write_text("", "utf-8")
    with (
        open_side("head", str(repository), tmp_path) as side,
        pytest.raises(CompareError, match=r"uncommitted changes \(blip3v/new\.py\).*leave out -o"),
    ):
        check_reportable(side)
    shutil.rmtree(repository / ".git")
    with (
        open_side("head", str(repository), tmp_path) as side,
        pytest.raises(CompareError, match="is not a git checkout"),
    ):
        check_reportable(side)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(("no-such-branch", "."), "'no-such-branch' is not a commit of this repository", id="commit"),
        pytest.param((".", "./blip3v"), "'./blip3v' is not a checkout", id="folder"),
        pytest.param((".", ".", "--questions", "0"), "--questions is 0", id="no questions"),
        pytest.param((".", ".", "--models", "tiny"), "invalid choice: 'tiny'", id="model"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        compare_commits.main(words)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_model_that_one_side_does_not_ship_is_named(repository: Path, tmp_path: Path) -> None:
    with (
        open_side("head", "HEAD", tmp_path) as side,
        pytest.raises(CompareError, match="HEAD ships no model 'tiny-gttm'"),
    ):
        compare_commits.check_models([side], ["tiny-gttm"])


def test_a_failed_command_ends_with_what_it_said(repository: Path, tmp_path: Path) -> None:
    (repository / "blip3v" / "__main__.py").write_text("raise SystemExit('no export today')", "utf-8")
    with (
        open_side("head", str(repository), tmp_path) as side,
        pytest.raises(CompareError, match=r"blip3v export .* ended with code 1:\nno export today"),
    ):
        compare_commits.outputs_of(side, MODEL, "fp16", tmp_path, None)
