"""Models by their hub id, against a stand-in of the hub on this machine: cache, permission, download, refusals."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_bundle import write_fake_bundle
from hub_server import COMMIT, Hub, connect, serving
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from blip3v.bundle import verify_bundle
from blip3v.errors import ArtifactError, ArtifactMissingError
from blip3v.hub import Download, HubId, HubKind, model_name, resolve

ID = "acme/video"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}}
RELEASED = {
    "config.json": b'{"model_type": "xgenmm"}',
    "preprocessor_config.json": b"{}",
    "tokenizer.model": b"pieces",
    "tokenizer_config.json": b"{}",
    "added_tokens.json": b"{}",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    SHARDS[0]: b"a" * 40_000,
    SHARDS[1]: b"b" * 30_000,
}
NOT_NEEDED = {
    "pytorch_model.bin": b"pickle", "modeling_xgenmm.py": b"code", "README.md": b"# card", ".gitattributes": b"x",
    "checkpoint.pt": b"pickle", "original/model.safetensors": b"twice", "image.png": b"picture",
}  # fmt: skip
MODEL_FOLDER = {
    "config.json": b'{"schema_version": 1}', "chat_template.jinja": b"x", "generation.json": b"{}",
    "preprocessor.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w" * 100, "training.json": b"{}",
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, which does not exist yet."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub({**RELEASED, **NOT_NEEDED})) as served:
        connect(served.endpoint, cache, monkeypatch)
        yield served


@pytest.fixture
def no_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub can be reached."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    connect(f"http://127.0.0.1:{port}", cache, monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def snapshot(cache: Path, commit: str = COMMIT) -> Path:
    return cache / "models--acme--video" / "snapshots" / commit


@pytest.mark.parametrize(
    ("name", "repository", "revision"),
    [
        ("acme/video", "acme/video", "main"),
        ("acme/video@v1.0", "acme/video", "v1.0"),
        ("acme/video@refs/pr/3", "acme/video", "refs/pr/3"),
        (f"acme/video@{COMMIT}", "acme/video", COMMIT),
        (
            "Salesforce/xgen-mm-vid-phi3-mini-r-v1.5-128tokens-8frames",
            "Salesforce/xgen-mm-vid-phi3-mini-r-v1.5-128tokens-8frames",
            "main",
        ),
    ],
)
def test_what_is_a_hub_id(name: str, repository: str, revision: str) -> None:
    assert HubId.parse(name) == HubId(repository=repository, revision=revision)
    assert str(HubId.parse(name)) == name


@pytest.mark.parametrize(
    "name",
    ["video", "runs/mine/model", "/acme/video", "../video", "acme/..", "./acme", "acme/video.git", "acme/vi--deo",
     "acme/video@", "acme/video@../../x", "acme/video@/etc/passwd", "acme/video\n", "acme/v x", "", "a" * 300 + "/b",
     "acme/vidéo", "~/video", "acme\\video"],
)  # fmt: skip
def test_what_can_only_be_a_path_is_returned_as_it_is(name: str) -> None:
    assert HubId.parse(name) is None
    assert resolve(name) == Path(name)


def test_a_local_path_comes_first(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "acme" / "video").mkdir(parents=True)
    assert resolve(ID, download=True) == Path(ID)
    assert hub.requests == []


def test_nothing_is_downloaded_without_being_told(hub: Hub, cache: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="acme/video is neither a local path nor a model in the") as caught:
        resolve(ID)
    assert caught.value.remedy == "to download it pass `download=True`"
    assert hub.requests == []
    assert not cache.exists()


def test_a_download_takes_what_is_needed_and_then_works_offline(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve(ID, download=True)
    assert folder == snapshot(cache)
    assert contents(folder) == RELEASED
    assert hub.downloads()[-2:] == list(SHARDS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    for name in (ID, f"{ID}@main", f"{ID}@{COMMIT}"):
        assert resolve(name) == folder
        assert resolve(name, download=True) == folder
    assert hub.requests == []
    assert not are_progress_bars_disabled()


@pytest.mark.parametrize("revision", ["v1.0", COMMIT])
def test_a_revision_is_downloaded_and_found_again(hub: Hub, cache: Path, revision: str) -> None:
    assert resolve(f"{ID}@{revision}", download=True) == snapshot(cache)
    assert resolve(f"{ID}@{revision}") == snapshot(cache)
    with pytest.raises(ArtifactMissingError):
        resolve(ID)


def test_whoever_allows_a_download_is_told_what_it_brings(hub: Hub, cache: Path) -> None:
    asked: list[Download] = []

    def decline(planned: Download) -> bool:
        asked.append(planned)
        return False

    with pytest.raises(ArtifactMissingError, match="was not downloaded, as you chose"):
        resolve(ID, download=decline)
    assert hub.downloads() == []
    assert str(asked[0]).splitlines() == [
        "acme/video, revision main, commit 89abcdef0123",
        "size: 68.5 KiB in 8 files",
        "licence: cc-by-nc-4.0 (no commercial use)",
        f"destination: {cache}",
    ]
    assert asked[0].remaining_bytes == sum(map(len, RELEASED.values()))


def test_a_repository_without_a_licence_says_so(hub: Hub) -> None:
    hub.licence = None
    with pytest.raises(ArtifactMissingError, match="as you chose"):
        resolve(ID, download=lambda planned: "licence: the repository states none" not in str(planned))


def test_a_dropped_connection_is_resumed_within_the_file(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.drop_at[SHARDS[0]] = 20_000
    folder = resolve(ID, download=True)
    assert contents(folder) == RELEASED
    assert hub.downloads()[-3:] == [SHARDS[0], f"{SHARDS[0]} bytes=20000-", SHARDS[1]]


def test_after_a_failure_only_what_is_missing_is_downloaded(hub: Hub) -> None:
    hub.refusals[SHARDS[1]] = (404, "EntryNotFound")
    with pytest.raises(ArtifactError, match="the hub answers 404 for acme/video"):
        resolve(ID, download=True)
    with pytest.raises(ArtifactMissingError, match=f"is in the hub's cache .*, but without {SHARDS[1]}"):
        resolve(ID)
    hub.refusals.clear()
    hub.requests.clear()
    told: list[str] = []

    def allow(planned: Download) -> bool:
        told.append(str(planned))
        return True

    folder = resolve(ID, download=allow)
    assert contents(folder) == RELEASED
    assert hub.downloads() == [SHARDS[1]]
    assert "size: 29.3 KiB in 1 file; 7 files in the cache already" in told[0]


@pytest.mark.parametrize("lost", ["tokenizer.model", "preprocessor_config.json", SHARDS[0]])
def test_a_copy_that_another_program_left_incomplete_is_completed(hub: Hub, cache: Path, lost: str) -> None:
    folder = resolve(ID, download=True)
    (folder / lost).resolve().unlink()  # leaves a dangling link
    with pytest.raises(ArtifactMissingError, match=f"but without {lost}"):
        resolve(ID)
    assert contents(resolve(ID, download=True)) == RELEASED


def test_a_model_folder_is_understood(hub: Hub, cache: Path) -> None:
    hub.files = {**MODEL_FOLDER, **NOT_NEEDED}
    assert contents(resolve(ID, download=True)) == MODEL_FOLDER
    (snapshot(cache) / "generation.json").unlink()
    with pytest.raises(ArtifactMissingError, match=r"but without generation\.json"):
        resolve(ID)


def test_a_bundle_is_understood(hub: Hub, tmp_path: Path) -> None:
    bundle = contents(write_fake_bundle(tmp_path / "bundle"))
    strangers = {"LICENSE": b"x", "onnx/other.onnx": b"x", "notes.json": b"{}", "model.safetensors": b"x"}
    hub.files = {**bundle, **strangers, ".gitattributes": b"x"}
    folder = resolve(ID, download=True)
    assert contents(folder) == bundle
    assert (folder / "onnx" / "decoder.data").is_symlink()
    assert verify_bundle(folder).ok
    (folder / "onnx" / "decoder.data").unlink()
    with pytest.raises(ArtifactMissingError, match=r"but without onnx/decoder\.data"):
        resolve(ID)


def test_a_model_of_the_other_kind_is_refused_before_the_question_and_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    """`ask -m CHECKPOINT` advised a download of 8 GB, after which it said that it needs a bundle."""
    bundle = contents(write_fake_bundle(tmp_path / "bundle"))
    make_one = "is a checkpoint, and a bundle is needed; make one with `blip3v export -m acme/video`"
    cases: tuple[tuple[dict[str, bytes], HubKind, HubKind, str], ...] = (
        (dict(hub.files), "bundle", "checkpoint", f"acme/video {make_one}"),
        (bundle, "checkpoint", "bundle", "acme/video is a bundle, whose .*, and a checkpoint is needed; name the one"),
    )
    for files, wanted, right, says in cases:
        hub.files, hub.commit = files, {"checkpoint": "a", "bundle": "b"}[right] * 40
        name = f"{ID}@{hub.commit}"
        hub.requests.clear()
        with pytest.raises(ArtifactError, match=says.replace("acme/video", name)):
            resolve(name, kind=wanted, download=lambda _: pytest.fail("asked"))
        assert hub.downloads() == []
        assert resolve(name, kind=right, download=True) == resolve(name)
        with pytest.raises(ArtifactError, match=says.replace("acme/video", name)):
            resolve(name, kind=wanted)


def test_a_tokenizer_comes_without_the_weights(hub: Hub) -> None:
    """`convert --tokenizer` took no hub id."""
    folder = resolve(ID, kind="tokenizer", download=True)
    assert contents(folder) == {name: data for name, data in RELEASED.items() if name not in SHARDS}
    assert resolve(ID, kind="tokenizer") == folder
    with pytest.raises(ArtifactMissingError, match=r"but without model-0000.*\.safetensors"):
        resolve(ID, kind="checkpoint")
    assert contents(resolve(ID, kind="checkpoint", download=True)) == RELEASED
    hub.files, hub.commit = MODEL_FOLDER, "c" * 40
    with pytest.raises(ArtifactMissingError, match=r"has no preprocessor_config\.json, tokenizer\.model"):
        resolve(f"{ID}@{hub.commit}", kind="tokenizer", download=lambda _: pytest.fail("asked"))


@pytest.mark.parametrize(
    "files",
    [{}, NOT_NEEDED, {**NOT_NEEDED, "config.json": b"{}"}, {"model.safetensors": b"x"}, {"manifest.json": b"{}"}],
    ids=["nothing", "pickles", "config-and-pickles", "weights-only", "manifest-only"],
)
def test_a_repository_without_a_model_is_refused_before_the_question(hub: Hub, files: dict[str, bytes]) -> None:
    hub.files = files
    with pytest.raises(ArtifactMissingError, match=r"it holds .*; allowed: a checkpoint with config\.json"):
        resolve(ID, download=lambda _: pytest.fail("asked"))
    assert hub.downloads() == []


def test_a_repository_that_lacks_what_it_lists_is_refused(hub: Hub) -> None:
    del hub.files[SHARDS[0]]
    with pytest.raises(ArtifactMissingError, match=f"lacks {SHARDS[0]} on the hub, too"):
        resolve(ID, download=True)


def test_a_repository_that_changes_meanwhile_is_refused(hub: Hub) -> None:
    def push(_: Download) -> bool:
        hub.commit = "f" * 40
        return True

    with pytest.raises(ArtifactError, match="has changed on the hub during the download; run it again"):
        resolve(ID, download=push)


def test_too_little_disk_space_is_found_before_the_question(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=50_000)
    monkeypatch.setattr("blip3v.publishing.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ArtifactError, match=r"downloading acme/video needs about 68\.5 KiB .* 48\.8 KiB is free"):
        resolve(ID, download=lambda _: pytest.fail("asked"))
    assert hub.downloads() == []


@pytest.mark.parametrize(
    ("name", "refusals", "token", "message"),
    [
        pytest.param("acme/other", {}, None, "acme/other is neither a local path nor a model on the hub", id="no-repo"),
        pytest.param(f"{ID}@v9", {}, None, r"acme/video has no revision 'v9'; see http.*/tree/main", id="no-revision"),
        pytest.param(ID, {}, "right", r"is given only to people .*ask for access at http.*/acme/video", id="gated"),
        pytest.param(ID, {SHARDS[0]: (403, "GatedRepo")}, None, "ask for access at http", id="gated-files"),
        pytest.param(ID, {"api": (401, "")}, None, r"refuses access to acme/video \(401\)", id="401"),
        pytest.param(ID, {"api": (403, "")}, None, r"refuses access to acme/video \(403\)", id="403"),
        pytest.param(ID, {"api": (500, "")}, None, "the hub answers 500 for acme/video", id="500"),
        pytest.param(ID, {"api": (429, "")}, None, "the hub answers 429 for acme/video", id="429"),
    ],
)
def test_a_refusal_of_the_hub_is_one_clear_sentence(
    hub: Hub, name: str, refusals: dict[str, tuple[int, str]], token: str | None, message: str
) -> None:
    hub.refusals, hub.token = refusals, token
    with pytest.raises(ArtifactError, match=message) as caught:
        resolve(name, download=True)
    assert "\n" not in str(caught.value)


def test_no_connection_is_one_clear_sentence(no_hub: None) -> None:
    with pytest.raises(ArtifactError, match=r"the hub at http://127.* cannot be reached \(.*refused\); check"):
        resolve(ID, download=True)


@pytest.mark.parametrize("download", [False, True])
def test_offline_mode_is_one_clear_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch, download: bool) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ArtifactMissingError, match=r"HF_HUB_OFFLINE forbids a download; unset it$"):
        resolve(ID, download=download)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_broken_copy_says_what_to_delete(hub: Hub, cache: Path, name: str) -> None:
    folder = resolve(ID, download=True)
    (folder / name).write_text('{"weight_map": 7')
    with pytest.raises(ArtifactError, match=rf"broken copy of acme/video: .*{name}.*; delete {folder.parents[1]} and"):
        resolve(ID)


def test_a_cache_that_cannot_be_written_is_one_clear_sentence(hub: Hub, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "models--acme--video").write_text("a file")
    with pytest.raises(ArtifactError, match=r"the hub's cache .*/hub cannot be used: .*; repair it, or set HF_HOME"):
        resolve(ID, download=True)


def test_a_snapshot_is_named_by_its_repository(hub: Hub, tmp_path: Path) -> None:
    """The folder's own name is a commit, which says nothing in a manifest or a table."""
    assert model_name(resolve(ID, download=True)) == "video@89abcdef0123"
    assert model_name(tmp_path / "mine") == "mine"


def test_the_environment_of_huggingface_hub_applies(tmp_path: Path) -> None:
    """HF_HOME, HF_ENDPOINT and HF_TOKEN, then HF_HUB_OFFLINE with the cache; the library loads only when needed."""
    code = (
        "import sys; import blip3v.runtime; from blip3v import hub; hub.resolve('.'); "
        "assert 'huggingface_hub.hf_api' not in sys.modules; print(hub.resolve('acme/video', download=True))"
    )

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-c", code], env=own | variables, capture_output=True, text=True, check=False
        )

    with serving(Hub(dict(MODEL_FOLDER), token="secret")) as hub:
        online = run(HF_HOME=str(tmp_path), HF_ENDPOINT=hub.endpoint, HF_TOKEN="secret")
        assert online.stdout.strip() == str(snapshot(tmp_path / "hub")), online.stderr
        assert online.stderr == ""  # no bars where there is no terminal
    offline = run(HF_HOME=str(tmp_path), HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout
