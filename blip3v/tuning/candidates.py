"""What may run a graph on this machine: engines with their settings, and numbers of threads.

To have more tried, add settings to a back end (``settings_to_try`` in its module), or a back end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from blip3v.bundle.reader import Bundle
from blip3v.bundle.tuning import Candidate
from blip3v.errors import ArtifactMissingError, ProviderError
from blip3v.runtime.backends import (
    AUTO,
    Backend,
    GraphName,
    backend_names,
    choose_backend,
    get_backend,
    settings_to_try,
)
from blip3v.runtime.machine import physical_cores
from blip3v.runtime.opening import graph_files
from blip3v.runtime.tuned import candidate_backend
from blip3v.tuning.turns import Timed

__all__ = ["default_candidate", "pair_of", "thread_counts", "variants", "with_threads"]


def default_candidate(bundle: Bundle, graph: GraphName) -> Candidate:
    """What ``auto`` takes for a graph without a tuning.

    Raises:
        ProviderError: nothing installed runs the graph.
    """
    manifest = bundle.manifest
    chosen = choose_backend(AUTO, graph, AUTO, manifest.target, manifest.precision.graphs[graph])
    return Candidate(backend=chosen.name)


def variants(bundle: Bundle, graph: GraphName) -> list[Candidate]:
    """The installed engines that run a graph, each as it is and with each of its settings; the default comes first.

    Raises:
        ProviderError: nothing installed runs the graph.
    """
    default = default_candidate(bundle, graph)
    precision = bundle.manifest.precision.graphs[graph]
    found = [default]
    for backend in _able(bundle, graph):
        found.append(Candidate(backend=backend.name))
        found += [
            Candidate(backend=backend.name, settings=settings)
            for settings in settings_to_try(backend, graph, precision)
        ]
    return [candidate for at, candidate in enumerate(found) if candidate not in found[:at]]


def pair_of(bundle: Bundle, timed: Sequence[Timed]) -> Candidate | None:
    """The decoder on two engines: the one that read the prompt fastest, and the one that took steps fastest.

    None if they are the same, or cannot share a cache.
    """
    able = [one for one in timed if one.first_s and not one.candidate.settings]

    def fastest(part: str) -> Timed:
        return min(able, key=lambda one: (one.medians_s or one.first_s)[part])

    prefill, steps = fastest("prefill"), fastest("step")
    if prefill is steps:
        return None
    pair = Candidate(backend=f"{prefill.candidate.backend}+{steps.candidate.backend}")
    try:
        candidate_backend(pair, "decoder", bundle)
    except ProviderError:
        return None
    return pair


def thread_counts() -> list[int]:
    """Numbers of threads worth a try besides the engines' own default, one for each physical core; few of them."""
    logical = os.cpu_count() or 1
    physical = physical_cores() or logical
    return sorted({1, max(1, physical // 2), logical} - {physical})


def with_threads(candidate: Candidate, counts: Sequence[int]) -> list[Candidate]:
    """The candidate with each of ``counts``; [] if its device has no threads to set."""
    if get_backend(candidate.backend).devices[0] != "cpu":
        return []
    return [Candidate(backend=candidate.backend, threads=count, settings=candidate.settings) for count in counts]


def _able(bundle: Bundle, graph: GraphName) -> list[Backend]:
    manifest = bundle.manifest
    able = []
    for name in _names():
        if not get_backend(name).is_installed():
            continue
        try:
            backend = choose_backend(name, graph, AUTO, manifest.target, manifest.precision.graphs[graph])
            backend.footprint(graph_files(bundle)[graph])
        except ProviderError:  # does not run this target or precision, or is installed and broken: not at hand
            continue
        except ArtifactMissingError:  # what it opens has not been built
            continue
        able.append(backend)
    return able


def _names() -> Iterator[str]:
    """Every back end, and every other form that its CPU has, such as bf16."""
    for name in backend_names():
        yield name
        yield from (f"{name}:{device}" for device in get_backend(name).devices[1:] if device.startswith("cpu-"))
