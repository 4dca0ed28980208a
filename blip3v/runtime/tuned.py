"""Which engine opens each graph of a bundle, and how it is set: what was asked for, what was tuned here, or the rule.

A tuning (``bundle/tuning.py``) stands in for ``auto`` alone, and only for a graph for which nothing else was asked:
a back end, a device or a number of threads that the caller names is taken as it is. A tuning that does not fit is
passed over, and ``EngineChoice.tuning`` says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from blip3v.bundle.reader import Bundle
from blip3v.bundle.tuning import Candidate, TunedGraph, Tuning, tuning_files
from blip3v.errors import Blip3vError, EngineMismatchError
from blip3v.runtime.backends import (
    AUTO,
    GRAPHS,
    Backend,
    GraphName,
    choose_backend,
    get_backend,
    parse_backends,
    with_settings,
)
from blip3v.runtime.machine import this_machine
from blip3v.units import format_ratio

__all__ = ["EngineChoice", "candidate_backend", "choose_engines"]


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """What opens each graph."""

    backends: Mapping[GraphName, Backend]
    threads: Mapping[GraphName, int | None]  # inside an operator; None: one for each physical core
    tuning: str | None  # what a tuning decided, or why it was passed over; None: there is none, or all was asked for


def choose_engines(
    bundle: Bundle, graph_hash: Callable[[GraphName], str], *, backend: str, device: str, threads: int | None
) -> EngineChoice:
    """The engines for a bundle.

    Args:
        bundle: to be opened.
        graph_hash: hash of the files of a graph.
        backend: as ``VideoLM.open`` takes it.
        device: likewise.
        threads: likewise.

    Raises:
        UsageError: an unknown back end or device.
        ProviderError: an engine is not installed, or does not run on the device, or graphs of this form.
    """
    asked = parse_backends(backend)
    precisions, target = bundle.manifest.precision.graphs, bundle.manifest.target
    open_to_tuning = [graph for graph in GRAPHS if asked[graph] == AUTO] if device == AUTO and threads is None else []
    found, said = _tuned(bundle, graph_hash, open_to_tuning)
    backends: dict[GraphName, Backend] = {}
    for graph in GRAPHS:
        if graph in found:
            backends[graph] = found[graph][0]
        else:
            backends[graph] = choose_backend(asked[graph], graph, device, target, precisions[graph])
    return EngineChoice(
        backends=backends,
        threads={graph: found[graph][1].threads if graph in found else threads for graph in GRAPHS},
        tuning=said,
    )


def candidate_backend(candidate: Candidate, graph: GraphName, bundle: Bundle) -> Backend:
    """The back end of a candidate, with its settings, checked as one that a caller asks for.

    Raises:
        UsageError: an unknown back end or setting.
        ProviderError: it is not installed, or does not run graphs of this form.
    """
    manifest = bundle.manifest
    chosen = choose_backend(candidate.backend, graph, AUTO, manifest.target, manifest.precision.graphs[graph])
    return with_settings(chosen, candidate.settings)


def _tuned(
    bundle: Bundle, graph_hash: Callable[[GraphName], str], graphs: list[GraphName]
) -> tuple[dict[GraphName, tuple[Backend, Candidate]], str | None]:
    """The choices that hold, and what to say about the tuning."""
    if not graphs or not tuning_files(bundle.path):
        return {}, None
    path = Tuning.path(bundle.path, this_machine())
    if not path.is_file():
        return {}, f"tuned on another machine, so not used here; run `blip3v tune {bundle.path}`"
    try:
        tuning = Tuning.load(path)
    except Blip3vError as error:
        return {}, f"the tuning was passed over: {error.message}"
    found: dict[GraphName, tuple[Backend, Candidate]] = {}
    problems, gains = [], []
    for graph in (each for each in graphs if each in tuning.graphs):
        try:
            backend = _checked(bundle, tuning, path, graph, graph_hash(graph))
        except Blip3vError as error:
            problems.append(error.message)
            continue
        found[graph] = backend, tuning.graphs[graph].chosen
        gains.append(f"{graph.replace('_', ' ')} {_gain(tuning.graphs[graph])}")
    said = [f"tuned on {tuning.date[:10]}: {'; '.join(gains)}"] if gains else []
    if problems:
        said.append(f"the tuning was passed over: {'; '.join(problems)}; run `blip3v tune {bundle.path}` again")
    return found, "; ".join(said) or None


def _gain(tuned: TunedGraph) -> str:
    if tuned.chosen == tuned.default:
        return f"{tuned.chosen}, the default"
    return f"{tuned.chosen}, {format_ratio(tuned.speedup)}"


def _checked(bundle: Bundle, tuning: Tuning, path: Path, graph: GraphName, graph_sha256: str) -> Backend:
    """The back end of the choice for a graph.

    Raises:
        EngineMismatchError: the choice no longer holds.
        UsageError, ProviderError: as ``candidate_backend``.
    """
    stale = tuning.stale(graph, graph_sha256)
    if stale is not None:
        raise EngineMismatchError(f"{path.name} {stale}")
    tuned = tuning.graphs[graph]
    known = get_backend(tuned.chosen.backend)
    if not known.is_installed():
        raise EngineMismatchError(f"{path.name} names {known.name} for the {graph}, which is not installed any more")
    if (tuned.chosen.threads or 1) > (os.cpu_count() or 1):
        raise EngineMismatchError(f"{path.name} has {tuned.chosen.threads} threads, more than this machine's CPUs")
    backend = candidate_backend(tuned.chosen, graph, bundle)
    version = backend.execution(bundle.manifest.precision.graphs[graph]).version
    if version != tuned.engine_version:
        raise EngineMismatchError(
            f"{path.name} was measured with {known.name} {tuned.engine_version}; installed is {version}"
        )
    return backend
