"""Models that are named by their id on the Hugging Face hub: found in its cache, or downloaded into it if allowed.

What is in the cache is used without a connection. A download takes configs, tokenizer and safetensors, or the files of
a bundle: no pickles and no code. Files come one after another, so that a broken download loses a part of one of them;
a dropped connection is resumed within the file. The environment variables of huggingface_hub apply: HF_HOME,
HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN. It is imported only when a name is looked up.

Not here: what a link of the cache may lead to (``bundle/hub_links.py``).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blip3v
from blip3v import strict_json
from blip3v.bundle import layout
from blip3v.bundle.hub_links import repository_of
from blip3v.errors import ArtifactError, ArtifactMissingError, Blip3vError, ConfigError
from blip3v.publishing import require_disk
from blip3v.units import format_bytes

__all__ = ["Download", "HubId", "HubKind", "model_name", "resolve"]

HubKind = Literal["bundle", "checkpoint", "tokenizer"]

_ID = re.compile(r"(?P<repository>\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_DEFAULT_REVISION = "main"
_TIMEOUT_S = 30.0

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_OF_A_CHECKPOINT = re.compile(r"[\w.-]+\.(?:json|jinja|model|safetensors)", re.ASCII)
# Besides config and weights: without them neither a model folder nor a released checkpoint can be used.
_OF_A_MODEL_FOLDER = ("chat_template.jinja", "generation.json", "preprocessor.json", "tokenizer.json")
_OF_A_RELEASED_FOLDER = ("preprocessor_config.json", "tokenizer.model", "tokenizer_config.json")
_LARGE = (".safetensors", ".onnx", ".data")
_ALLOWED = "allowed: a checkpoint with config.json and *.safetensors, or a bundle"
# Packages whose exceptions mean that a request failed; which of them is installed depends on huggingface_hub's version.
_HTTP = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "ssl")


@dataclass(frozen=True, kw_only=True)
class HubId:
    """``ORG/NAME`` or ``ORG/NAME@REVISION``."""

    repository: str
    revision: str = _DEFAULT_REVISION  # a branch, a tag or a commit

    @classmethod
    def parse(cls, name: str) -> HubId | None:
        """The id that ``name`` has the form of; None if it can only be a path."""
        match = _ID.fullmatch(name)
        if match is None or ".." in name or "--" in match["repository"] or match["repository"].endswith(".git"):
            return None
        return cls(repository=match["repository"], revision=match["revision"] or _DEFAULT_REVISION)

    def __str__(self) -> str:
        return self.repository if self.revision == _DEFAULT_REVISION else f"{self.repository}@{self.revision}"


@dataclass(frozen=True, kw_only=True)
class Download:
    """What a download would bring; ``str`` says it to whoever has to allow it."""

    hub_id: HubId
    commit: str
    licence: str | None  # as the repository names it, for example cc-by-nc-4.0; None: it names none
    sizes: Mapping[str, int]  # bytes of each file, in the order of the download
    remaining: tuple[str, ...]  # the files that are not in the cache yet
    cache: Path  # the hub's, where they go

    @property
    def remaining_bytes(self) -> int:
        """Bytes to download."""
        return sum(self.sizes[name] for name in self.remaining)

    def __str__(self) -> str:
        there = len(self.sizes) - len(self.remaining)
        rest = f"; {_files(there)} in the cache already" if there else ""
        return (
            f"{self.hub_id.repository}, revision {self.hub_id.revision}, commit {self.commit[:12]}\n"
            f"size: {format_bytes(self.remaining_bytes)} in {_files(len(self.remaining))}{rest}\n"
            f"licence: {_licence_text(self.licence)}\n"
            f"destination: {self.cache}"
        )


def resolve(
    name: str | Path,
    *,
    kind: HubKind | None = None,
    download: bool | Callable[[Download], bool] = False,
    progress: bool = False,
    remedy: str = "to download it pass `download=True`",
) -> Path:
    """Returns the local path of what ``name`` names.

    An existing path is returned as it is, and so is a name that cannot be a hub id. A hub id is looked up in the hub's
    cache, and downloaded if it is not there complete. The hub is not asked whether there is something newer.

    Args:
        name: a path, ``ORG/NAME`` or ``ORG/NAME@REVISION``.
        kind: what a hub id must name; a checkpoint is a released one or a model folder, a tokenizer the files of a
            released one besides its weights. None: a bundle or a checkpoint.
        download: whether a download is allowed; a function is called with what it would bring, and decides.
        progress: whether to show bars on stderr, if it is a terminal.
        remedy: what the error advises if no download is allowed.

    Returns:
        The path, or the folder in the hub's cache; its files may be links.

    Raises:
        ArtifactMissingError: not there and not to be downloaded; or the hub has no such model, or refuses access.
        ArtifactError: it is of the other kind, which shows before the download; no connection, not enough disk space,
            or a broken cache.
    """
    hub_id = HubId.parse(os.fspath(name))
    if hub_id is None or os.path.exists(name):
        return Path(name)
    with _hub_errors(hub_id):
        folder, missing = _cached(hub_id, kind)
        if folder is not None and not missing:
            _check_kind(hub_id, kind, is_bundle=(folder / layout.MANIFEST).is_file(), is_here=True)
            return folder
        if _is_offline():
            raise ArtifactMissingError(f"{_not_here(hub_id, missing)}, and HF_HUB_OFFLINE forbids a download; unset it")
        if download is False:
            raise ArtifactMissingError(_not_here(hub_id, missing), remedy=remedy)
        planned = _plan(hub_id, kind)
        require_disk(planned.cache, planned.remaining_bytes, f"downloading {hub_id}")
        if callable(download) and not download(planned):
            raise ArtifactMissingError(f"{hub_id} was not downloaded, as you chose; name a local folder instead")
        return _fetch(planned, kind, progress=progress)


def model_name(path: Path) -> str:
    """The name of a model's file or folder; of a snapshot in the hub's cache, those of its repository and commit."""
    real = path.resolve()
    repository = repository_of(real)
    if repository is None:
        return real.name
    commit = real.relative_to(repository / "snapshots").parts[0]
    return f"{repository.name.rpartition('--')[2]}@{commit[:12]}"


def _cached(hub_id: HubId, kind: HubKind | None) -> tuple[Path | None, list[str]]:
    """The snapshot in the cache, None if there is none, and the files that it lacks."""
    from huggingface_hub import try_to_load_from_cache  # heavy; only for a hub id

    config = try_to_load_from_cache(hub_id.repository, _CONFIG, revision=hub_id.revision)
    if not isinstance(config, str):
        return None, []
    folder = Path(config).parent
    try:
        return folder, [name for name in _expected(folder, kind) if not (folder / name).is_file()]
    except ConfigError as error:
        raise ArtifactError(
            f"the hub's cache holds a broken copy of {hub_id}: {error}; delete {folder.parents[1]} and download it "
            "again"
        ) from error


def _expected(folder: Path, kind: HubKind | None) -> list[str]:
    """The files without which a snapshot is not complete as ``kind``, by what it says itself.

    Raises:
        ConfigError: a file that should say so is broken.
    """
    if (folder / layout.MANIFEST).is_file():
        return list(_section(folder / layout.MANIFEST, "files"))
    if kind == "tokenizer":
        return [*_OF_A_RELEASED_FOLDER]
    is_ours = "schema_version" in strict_json.read_json(folder / _CONFIG)
    others = _OF_A_MODEL_FOLDER if is_ours else _OF_A_RELEASED_FOLDER
    if not (folder / _INDEX).is_file():
        return [*others, _SINGLE]
    return [*others, *{str(shard) for shard in _section(folder / _INDEX, "weight_map").values()}]


def _section(path: Path, key: str) -> Mapping[str, object]:
    values = strict_json.read_json(path).get(key)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} has no object {key!r}")
    return values


def _check_kind(hub_id: HubId, wanted: HubKind | None, *, is_bundle: bool, is_here: bool) -> None:
    if is_bundle and wanted in ("checkpoint", "tokenizer"):
        raise ArtifactError(
            f"{hub_id} is a bundle, whose graphs cannot be read back, and a checkpoint is needed; name the one that it "
            "was made from"
        )
    if not is_bundle and wanted == "bundle":
        raise ArtifactError(
            f"{hub_id} is a checkpoint, and a bundle is needed",
            remedy=f"make one with `blip3v export -m {hub_id}`{'' if is_here else ' and `download=True`'}",
        )


def _plan(hub_id: HubId, kind: HubKind | None) -> Download:
    """Asks the hub what there is."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    api = HfApi(library_name="blip3v", library_version=blip3v.__version__)
    info = api.model_info(hub_id.repository, revision=hub_id.revision, files_metadata=True, timeout=_TIMEOUT_S)
    if info.sha is None:
        raise ArtifactError(f"the hub names no commit for {hub_id}; check HF_ENDPOINT")
    sizes = _wanted({file.rfilename: file.size or 0 for file in info.siblings or ()}, hub_id)
    _check_kind(hub_id, kind, is_bundle=layout.MANIFEST in sizes, is_here=False)
    if kind == "tokenizer":
        sizes = _without_weights(sizes, hub_id)
    remaining = [
        name
        for name in sizes
        if not isinstance(try_to_load_from_cache(hub_id.repository, name, revision=info.sha), str)
    ]
    tags = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return Download(
        hub_id=hub_id,
        commit=info.sha,
        licence=next(tags, None),
        sizes=sizes,
        remaining=tuple(remaining),
        cache=Path(HF_HUB_CACHE),
    )


def _wanted(sizes: Mapping[str, int], hub_id: HubId) -> dict[str, int]:
    """The files to download, small ones first: where the weights are complete, everything is.

    Raises:
        ArtifactMissingError: neither a checkpoint nor a bundle.
    """
    if layout.MANIFEST in sizes:
        wanted = [name for name in sizes if name == layout.MANIFEST or layout.is_hashed(name)]
    else:
        wanted = [name for name in sizes if _OF_A_CHECKPOINT.fullmatch(name)]
    if _CONFIG not in wanted or not any(name.endswith(".safetensors") for name in wanted):
        found = ", ".join(sorted(sizes)[:8]) or "nothing"
        raise ArtifactMissingError(f"{hub_id} is not a model that blip3v reads; it holds {found}; {_ALLOWED}")
    return {name: sizes[name] for name in sorted(wanted, key=lambda name: (name.endswith(_LARGE), name))}


def _without_weights(sizes: Mapping[str, int], hub_id: HubId) -> dict[str, int]:
    """The files of a released checkpoint that ``sizes`` are of, without its weights.

    Raises:
        ArtifactMissingError: it is of another kind.
    """
    missing = [name for name in _OF_A_RELEASED_FOLDER if name not in sizes]
    if missing:
        raise ArtifactMissingError(f"{hub_id} has no {_listed(missing)}; name a released checkpoint for its tokenizer")
    return {name: size for name, size in sizes.items() if not name.endswith(_LARGE)}


def _fetch(planned: Download, kind: HubKind | None, *, progress: bool) -> Path:
    """Downloads everything; the first file by the name of the revision, for which the cache then notes the commit."""
    from huggingface_hub import hf_hub_download

    hub_id = planned.hub_id
    with _bars(progress):
        revision = hub_id.revision
        for name in planned.sizes:
            hf_hub_download(
                hub_id.repository, name, revision=revision, library_name="blip3v", library_version=blip3v.__version__
            )
            revision = planned.commit
    folder, missing = _cached(hub_id, kind)
    if folder is None or folder.name != planned.commit:
        raise ArtifactError(f"{hub_id} has changed on the hub during the download; run it again, or name a commit")
    if missing:
        raise ArtifactMissingError(f"{hub_id} lacks {_listed(missing)} on the hub, too; {_ALLOWED}")
    return folder


@contextlib.contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """The library shows its bars on terminals only; without ``progress`` not even there."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if progress or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def _hub_errors(hub_id: HubId) -> Iterator[None]:
    """Turns what huggingface_hub raises inside the block into our errors."""
    try:
        yield
    except Blip3vError:
        raise
    except Exception as error:
        ours = _as_ours(error, hub_id)
        if ours is None:
            raise
        raise ours from error


def _as_ours(error: Exception, hub_id: HubId) -> Blip3vError | None:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why a file that is not in the cache did not come from the hub
    page = f"{constants.ENDPOINT}/{hub_id.repository}"
    what = _first_line(error)
    if isinstance(error, errors.GatedRepoError):
        return ArtifactMissingError(
            f"{hub_id} is given only to people whom its authors let in; ask for access at {page}, then run "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ArtifactMissingError(f"{hub_id.repository} has no revision {hub_id.revision!r}; see {page}/tree/main")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ArtifactMissingError(
            f"{hub_id.repository} is neither a local path nor a model on the hub that you may see; check the name; for "
            "a private model run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return ArtifactMissingError(
                f"the hub refuses access to {hub_id} ({status}); run `hf auth login` or set HF_TOKEN to a valid token"
            )
        return ArtifactError(f"the hub answers {status} for {hub_id}: {what}; try again later")
    if type(error).__module__.partition(".")[0] in _HTTP or isinstance(error, (ConnectionError, TimeoutError)):
        return ArtifactError(
            f"the hub at {constants.ENDPOINT} cannot be reached ({what}); check the connection, the proxy and "
            "HF_ENDPOINT, or name a local folder; files that were complete are kept"
        )
    if isinstance(error, OSError) and error.errno is None:
        return ArtifactError(f"downloading {hub_id} failed: {what}; run it again")
    if isinstance(error, (OSError, ValueError)):
        return ArtifactError(
            f"the hub's cache {constants.HF_HUB_CACHE} cannot be used: {what}; repair it, or set HF_HOME to another "
            "folder with free space and write permission"
        )
    return None


def _is_offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return HF_HUB_OFFLINE


def _not_here(hub_id: HubId, missing: list[str]) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    if missing:
        return f"{hub_id} is in the hub's cache {HF_HUB_CACHE}, but without {_listed(missing)}"
    return f"{hub_id} is neither a local path nor a model in the hub's cache {HF_HUB_CACHE}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _licence_text(licence: str | None) -> str:
    if licence is None:
        return "the repository states none"
    return f"{licence} (no commercial use)" if "-nc" in licence else licence


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
