"""Mixture files of the authors' code: a YAML map from a list of clips to how many of its records are taken.

    data_path:
      captions.json: 100000
      msrvtt-qa=/data/msrvtt: 20000
      tgif-qa=/data/tgif: 0.5x
      activitynet-qa=/data/activitynet: all

The authors' files have JSON lists and numbers of records; the other entries are ours: any word that ``mixture.py``
describes but another mixture file, and as weight a number of records, ``all``, or a multiple of all with an ``x``. The
key ``data_path`` may be left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from blip3v.errors import ConfigError

__all__ = ["ALL", "SUFFIXES", "Weight", "read_mixture"]

SUFFIXES = (".yaml", ".yml")
_SEED = 42  # of the authors' code
_KEY = "data_path"
_COUNT, _MULTIPLE = re.compile(r"[1-9][0-9_]*"), re.compile(r"([0-9]+(?:\.[0-9]+)?)x")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Weight:
    """How many records of a list are taken.

    Attributes:
        count: at most so many; None: see ``multiple``.
        multiple: of all records; above 1 they are repeated.
    """

    count: int | None = None
    multiple: float = 1.0

    def take(self, records: Sequence[_T]) -> tuple[_T, ...]:
        """The records that are taken.

        All of them keep their order. A count or another multiple shuffles them first as the authors' code does, by
        Python's ``random`` with the seed 42, and takes the first ones.
        """
        if self.count is None and self.multiple == 1:
            return tuple(records)
        shuffled = list(records)
        random.Random(_SEED).shuffle(shuffled)
        if self.count is not None:
            return tuple(shuffled[: self.count])
        whole = int(self.multiple)
        rest = round((self.multiple - whole) * len(shuffled))
        return (*shuffled * whole, *shuffled[:rest])


ALL = Weight()


def read_mixture(path: Path) -> dict[str, Weight]:
    """The entries of a mixture file, in its order.

    Raises:
        ConfigError: the file is not such a map; the message names the line.
    """
    try:
        node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    pairs = _pairs(node, path)
    if len(pairs) == 1 and pairs[0][0].value == _KEY:
        pairs = _pairs(pairs[0][1], path)
    weights: dict[str, Weight] = {}
    for key, value in pairs:
        where = f"{path}: line {key.start_mark.line + 1}"
        if key.value in weights:
            raise ConfigError(f"{where} names {key.value!r} a second time")
        weights[key.value] = _weight(value, where)
    return weights


def _pairs(node: yaml.Node | None, path: Path) -> list[tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise ConfigError(f"{path} is not a map; lines such as `clips.json: 1000` are expected")
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}: line {key.start_mark.line + 1} has no name before its colon")
    return list(node.value)


def _weight(node: yaml.Node, where: str) -> Weight:
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    if text == "all":
        return ALL
    if _COUNT.fullmatch(text):
        return Weight(count=int(text))
    multiple = _MULTIPLE.fullmatch(text)
    if multiple is not None and float(multiple[1]) > 0:
        return Weight(multiple=float(multiple[1]))
    raise ConfigError(
        f"{where} takes {text!r}; a number of records such as 1000, all, or a multiple such as 0.5x is expected"
    )
