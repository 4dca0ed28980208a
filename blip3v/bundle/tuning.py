"""``tuning/MACHINE.json``: what was measured to be the fastest way to run each graph on one machine.

One file for each machine, so that a bundle on a shared disk has several. A tuning is derived: not hashed by the
manifest, and it may be deleted. Also here: whether one still holds for a bundle. Not here: measuring
(``blip3v/tuning``), and what this machine is (``runtime/machine.py``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import blip3v
from blip3v import strict_json
from blip3v.bundle.layout import TUNING
from blip3v.errors import ArtifactError, ConfigError
from blip3v.publishing import cannot_write, check_writable, write_file

__all__ = ["Candidate", "Machine", "Measured", "Setting", "TunedGraph", "Tuning", "tuning_files"]

SCHEMA_VERSION = 1
_SLUG_CHARS = 40

Setting = str | int | bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides how fast engines are, besides their versions."""

    cpu: str  # its name; "unknown" if the system does not tell
    cpu_model: str  # its family, model and stepping, since names are shared by generations; "" if not known
    architecture: str  # such as "x86_64"
    logical_cpus: int | None
    usable_cpus: int | None  # by this process
    cpu_quota: float | None  # CPUs' worth of time that the control group allows; None: no limit, or not known
    gpus: tuple[str, ...] = ()  # NVIDIA's, as their driver names them

    @property
    def key(self) -> str:
        """Name of its file without the ending: readable, and different if anything differs."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        name = self.gpus[0] if self.gpus else self.cpu
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:_SLUG_CHARS].strip("-") or "cpu"
        return f"{slug}-{digest}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run a graph."""

    backend: str  # as ``get_backend`` takes it
    threads: int | None = None  # inside an operator; None: one for each physical core
    settings: dict[str, Setting] = field(default_factory=dict)  # of the engine, as ``with_settings`` takes them

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; at least 1 is needed")

    def __str__(self) -> str:
        threads = [] if self.threads is None else [f"{self.threads} thread{'s' if self.threads > 1 else ''}"]
        words = {True: "on", False: "off"}
        settings = [
            f"{name.replace('_', ' ')} {words.get(value, value) if isinstance(value, bool) else value}"
            for name, value in self.settings.items()
        ]
        return ", ".join([self.backend, *threads, *settings])


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What became of a candidate, beside the default in the same turns."""

    candidate: Candidate
    median_s: float | None  # of what was weighed; None: it was not measured to the end
    speedup: float | None  # median over the turns of the default's time over its own; None: as above
    num_turns: int
    accuracy: str  # in words
    allowed: bool | None  # whether its results stay within the budget; None: not compared, since it is no faster
    times_s: dict[str, float]  # medians of the parts: run; prefill, step


@dataclass(frozen=True, kw_only=True)
class TunedGraph:
    """The choice for one graph."""

    graph_sha256: str  # of the graph's files, as ``opening.graph_hash`` gives it
    chosen: Candidate
    engine_version: str
    speedup: float  # over ``default``; 1 if that was chosen
    default: Candidate  # what ``auto`` takes without a tuning
    measured: tuple[Measured, ...]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The contents of a file."""

    machine: Machine
    date: str  # ISO 8601, UTC
    graphs: dict[str, TunedGraph]  # video_encoder, decoder
    question_tokens: int  # that the decoder's times were weighed by
    new_tokens: int
    budget: str  # in words: what results were allowed to lose
    command: str | None  # None: called from Python
    environment: dict[str, Any] = field(default_factory=dict)
    blip3v: str = blip3v.__version__
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """The contents of the file, as plain JSON values."""
        return asdict(self)

    def stale(self, graph: str, graph_sha256: str) -> str | None:
        """Why the choice for a graph no longer holds, as far as the file tells; None: it does."""
        tuned = self.graphs.get(graph)
        if tuned is None:
            return f"has no choice for the {graph}"
        if tuned.graph_sha256 != graph_sha256:
            return f"is of another {graph}: the bundle was exported again since"
        if self.blip3v != blip3v.__version__:
            return f"was made by blip3v {self.blip3v}; this is {blip3v.__version__}"
        return None

    @staticmethod
    def path(bundle: Path, machine: Machine) -> Path:
        """Where the tuning of a bundle for a machine lies."""
        return bundle / TUNING / f"{machine.key}.json"

    @classmethod
    def check_writable(cls, bundle: Path, machine: Machine) -> None:
        """Checks that ``save`` will be able to write.

        Raises:
            ArtifactError: the bundle cannot be written to.
        """
        folder = bundle / TUNING
        check_writable(cls.path(bundle, machine) if folder.exists() else folder)

    def save(self, bundle: Path) -> Path:
        """Writes the file atomically, replacing an earlier one of this machine; returns its path.

        Raises:
            ArtifactError: it cannot be written.
        """
        path = self.path(bundle, self.machine)
        try:
            path.parent.mkdir(exist_ok=True)
            write_file(path, strict_json.dumps(self.to_dict()))
        except OSError as error:
            raise cannot_write(path, error) from error
        return path

    @classmethod
    def load(cls, path: Path) -> Tuning:
        """Reads a file.

        Raises:
            ArtifactError: it is not JSON, of another schema, or has an unknown or missing key.
        """
        try:
            values = strict_json.read_json(path)
            _check_version(path, values)
            return strict_json.from_dict(cls, values, str(path))
        except ConfigError as error:
            raise ArtifactError(f"{error}; run `blip3v tune {path.parent.parent}` again") from error


def tuning_files(bundle: Path) -> list[Path]:
    """The tunings of a bundle for all machines, sorted by name; [] if there is none."""
    folder = bundle / TUNING
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith("."))


def _check_version(path: Path, values: Mapping[str, Any]) -> None:
    if values.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(f"{path} has schema_version {values.get('schema_version')!r}; {SCHEMA_VERSION} is read")
