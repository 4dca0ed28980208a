"""Which of a bundle's engines runs on this machine. Neither TensorRT nor CUDA is needed to decide it.

Not here: whether one engine fits, and whether its file is the one that was built (``bundle/engines.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blip3v.bundle.engines import (
    BuiltGraph,
    EngineHost,
    EngineRecord,
    Library,
    check_engine,
    engine_file,
    engine_folders,
    find_engine,
)
from blip3v.errors import ArtifactError, ArtifactMissingError, EngineMismatchError
from blip3v.runtime.backends import GRAPHS, GraphFile, GraphName

__all__ = ["FoundEngine", "built_with", "choose_engine", "planned_engine"]


@dataclass(frozen=True, kw_only=True)
class FoundEngine:
    """An engine that fits, whose file is the one that was built."""

    path: Path
    record: EngineRecord


def choose_engine(graph: GraphFile, name: GraphName, hosts: Sequence[EngineHost]) -> FoundEngine:
    """The engine of a graph that this machine runs, checked byte by byte.

    Args:
        graph: the file, with the folder of its bundle's engines.
        name: which of the two graphs it is.
        hosts: this machine with each library to be tried, at least one.

    Raises:
        EngineMismatchError: none fits; says what each was built for, what is here, and what to run.
        ArtifactMissingError: no engine was built, or its file is gone.
        ArtifactHashError: its file is truncated or changed.
        ArtifactError: a record cannot be read.
    """
    engines = _folder(graph)
    refusals = []
    for host in _in_order(graph, hosts):
        try:
            folder, _ = find_engine(engines, name, graph.digest, host)
        except EngineMismatchError as error:
            refusals.append(error)
            continue
        return FoundEngine(path=folder / engine_file(name), record=check_engine(folder, name, graph.digest, host))
    raise refusals[0]


def planned_engine(graph: GraphFile, hosts: Sequence[EngineHost]) -> tuple[EngineRecord, BuiltGraph] | None:
    """The record of the engine that ``choose_engine`` takes, whose file is not looked at; None: it refuses.

    Args:
        graph: the file, with the folder of its bundle's engines.
        hosts: this machine with each library to be tried.
    """
    with contextlib.suppress(ArtifactError):
        for host in _in_order(graph, hosts):
            for name in GRAPHS:
                with contextlib.suppress(EngineMismatchError):
                    _, record = find_engine(_folder(graph), name, graph.digest, host)
                    return record, record.graphs[name]
    return None


def built_with(graph: GraphFile) -> set[Library]:
    """The libraries that built the engines of a graph's bundle.

    Raises:
        ArtifactMissingError: the graph is not in a bundle.
        ArtifactError: a record cannot be read.
    """
    return {EngineRecord.load(folder).library for folder in engine_folders(_folder(graph))}


def _in_order(graph: GraphFile, hosts: Sequence[EngineHost]) -> list[EngineHost]:
    """What built the engines first, so that a refusal compares them with their own library."""
    libraries = built_with(graph)
    return sorted(hosts, key=lambda host: host.library not in libraries)


def _folder(graph: GraphFile) -> Path:
    if graph.engines is None:
        raise ArtifactMissingError(f"{graph.path} is not in a bundle, so it has no engines; run `blip3v build BUNDLE`")
    return graph.engines
