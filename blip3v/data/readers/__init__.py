"""The data sets that blip3v reads, each in the layout that its authors publish, by name.

A new reader is one file in this folder with an object that keeps ``DataSet``, and its place in ``_DATA_SETS``.
"""

from __future__ import annotations

import difflib

from blip3v.data.readers.msrvtt_qa import MSRVTT_QA
from blip3v.data.records import DataSet
from blip3v.errors import UsageError

__all__ = ["data_set", "data_sets"]

_DATA_SETS: tuple[DataSet, ...] = (MSRVTT_QA,)


def data_sets() -> dict[str, DataSet]:
    """Every data set by its name, those of training first."""
    return {known.name: known for known in _DATA_SETS}


def data_set(name: str) -> DataSet:
    """The data set of a name.

    Raises:
        UsageError: there is none of this name; the message says the nearest one, or all.
    """
    known = data_sets()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
    raise UsageError(f"data set {name!r} is unknown; {hint}")
