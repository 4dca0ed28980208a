"""What calibration knows about the inputs of each linear layer, and the folder that holds it.

The folder has ``calibration.json`` (model, data, hashes, settings) and ``statistics.safetensors`` (for each layer
``NAME.absmax`` and ``NAME.rows``), from which a layer is read when it is asked for. The rows are inputs that were
really seen: those with the largest values, and a random sample of the others. Smoothing, rotation, ranges and rounding
all work on them, so that one calibration serves every precision. For the KV cache there is ``NAME.absmax`` alone, with
the names of ``cache_names``. Not here: taking the sample (``collect.py``, ``sampling.py``).
"""

# Shapes: N sampled rows, K inputs.

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

import blip3v
from blip3v import strict_json
from blip3v.bundle.manifest import Source
from blip3v.bundle.scan import hash_file
from blip3v.calibration.layers import linear_layers
from blip3v.calibration.record import (
    RECORD_FILE,
    SCHEMA_VERSION,
    STATISTICS_FILE,
    CalibrationRecord,
    DataRecord,
    LayerRecord,
    SamplingSettings,
    check_target,
)
from blip3v.config import ModelConfig, TextConfig
from blip3v.errors import ArtifactError, CalibrationError, ConfigError
from blip3v.model.weight_file import TensorInfo, compare, header, listed, opened, read_tensor_infos
from blip3v.publishing import cannot_write, new_folder

__all__ = ["Calibration", "CalibrationWriter", "LayerStatistics", "Statistics", "cache_names", "new_calibration"]

_CACHES = ("key_cache", "value_cache")
_AGAIN = "make it again with `blip3v calibrate`"


@dataclass(frozen=True)
class LayerStatistics:
    """The inputs of one linear layer.

    Attributes:
        absmax_K: fp32, the largest absolute value of each input over all rows that were seen.
        rows_NK: fp32, a sample of the rows: first those with the largest values, then random ones.
        num_seen: rows that were seen.
        num_extreme: how many of ``rows_NK`` were kept for their large values.
    """

    absmax_K: Tensor
    rows_NK: Tensor
    num_seen: int
    num_extreme: int


class Statistics(Protocol):
    """The statistics of every layer of a model."""

    def layer(self, name: str) -> LayerStatistics:
        """Returns those of the layer ``name``, as ``linear_layers`` names it.

        Raises:
            CalibrationError: the layer was not calibrated.
        """
        ...


def cache_names(text: TextConfig) -> tuple[str, ...]:
    """Returns the names of what the KV cache holds: keys after rope, and values, of each layer of the decoder.

    Their channels are those of all KV heads, one head after another: (num_kv_heads * head_dim,).
    """
    return tuple(f"lang_model.model.layers.{i}.{part}" for i in range(text.num_layers) for part in _CACHES)


class Calibration:
    """A calibration folder, which has been checked; one layer is read at a time. It implements ``Statistics``.

    Attributes:
        path: of the folder.
        record: what ``calibration.json`` says.
    """

    def __init__(self, path: Path, record: CalibrationRecord) -> None:
        self.path = path
        self.record = record

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Opens a calibration strictly: every layer of its model in its shape, and no others.

        Raises:
            CalibrationError: not a calibration, another schema version, unknown or missing keys or layers, NaN or
                infinity, or statistics that have changed since they were written.
        """
        if not (path / RECORD_FILE).is_file() or not (path / STATISTICS_FILE).is_file():
            missing = RECORD_FILE if not (path / RECORD_FILE).is_file() else STATISTICS_FILE
            raise CalibrationError(
                f"{path} has no {missing}, so it is not a calibration; make one with `blip3v calibrate`"
            )
        with _broken(path):
            calibration = cls(path, _read_record(path / RECORD_FILE))
            calibration._check_statistics()
        return calibration

    def layer(self, name: str) -> LayerStatistics:
        """Returns the statistics of the layer ``name``, as ``linear_layers`` names it.

        Raises:
            CalibrationError: the layer was not calibrated, or its file is broken.
        """
        entry = self.record.layers.get(name)
        if entry is None:
            raise CalibrationError(f"{self.path} has no layer {name!r}; calibrate this model: `blip3v calibrate`")
        with _broken(self.path), opened(self.path / STATISTICS_FILE) as file:
            absmax_K, rows_NK = file.get_tensor(f"{name}.absmax"), file.get_tensor(f"{name}.rows")
        if not bool(torch.isfinite(rows_NK).all()):
            raise CalibrationError(f"{self.path / STATISTICS_FILE}: {name}.rows contains NaN or infinity; {_AGAIN}")
        return LayerStatistics(absmax_K, rows_NK, entry.num_seen, entry.num_extreme)

    def absmax(self, name: str) -> Tensor:
        """Returns the largest absolute values, fp32 (K,), of a layer's inputs, or of a cache (``cache_names``).

        Raises:
            CalibrationError: it was not calibrated, or its file is broken.
        """
        if name not in self.record.layers and name not in cache_names(self.record.config.text):
            raise CalibrationError(f"{self.path} has no layer {name!r}; calibrate this model: `blip3v calibrate`")
        with _broken(self.path), opened(self.path / STATISTICS_FILE) as file:
            absmax_K: Tensor = file.get_tensor(f"{name}.absmax")
        return absmax_K

    def check_model(self, source: Source, config: ModelConfig) -> None:
        """Checks that the calibration is of this model.

        Args:
            source: the model, with the hashes of its files.
            config: of the model.

        Raises:
            CalibrationError: it is of another one. The message says what differs.
        """
        own = self.record.source
        files = own.sha256.keys() | source.sha256.keys()
        differing = sorted(name for name in files if own.sha256.get(name) != source.sha256.get(name))
        if (own.random_init, own.trained) != (source.random_init, source.trained):
            differing.insert(0, "whether the weights are trained")
        if self.record.config != config:
            differing.append(_differing(self.record.config.to_dict(), config.to_dict()))
        if differing:
            raise CalibrationError(
                f"{self.path} was made of another model, {own.name}, not of this one, {source.name}: they differ in "
                f"{', '.join(differing)}; calibrate this model: `blip3v calibrate`"
            )

    def check_held_apart(self, data: DataRecord) -> None:
        """Checks that the model was not calibrated on any of ``data``, on which it is to be evaluated.

        Raises:
            CalibrationError: it was. The message names the first film or file.
        """
        own = self.record.data
        films = sorted(set(own.seeds) & set(data.seeds)) if own.split == data.split else []
        hashes = set(own.sha256.values())
        shared = [f"film {films[0]} of the split {own.split}"] if films else []
        shared += [name for name, value in data.sha256.items() if value in hashes and name != "questions.json"]
        if shared:
            raise CalibrationError(
                f"{self.path} was made of {shared[0]}, which is also in the evaluation; calibrate or evaluate on "
                "other videos"
            )

    def _check_statistics(self) -> None:
        """Raises CalibrationError, or ArtifactError if the file is broken."""
        record, path = self.record, self.path / STATISTICS_FILE
        infos, wanted = read_tensor_infos(path), _tensor_infos(record.config, record.layers)
        problems = compare(infos, {name: info.shape for name, info in wanted.items()})
        problems += [f"{name} is {info.dtype}, expected F32" for name, info in infos.items() if info.dtype != "F32"]
        if problems:
            raise CalibrationError(f"{path} does not match its {RECORD_FILE}: {listed(problems)}")
        if hash_file(path) != record.sha256:
            raise CalibrationError(f"{path} has changed since it was written; copy it again, or {_AGAIN}")
        with opened(path) as file:
            for name in (name for name in infos if name.endswith(".absmax")):
                absmax_K = file.get_tensor(name)
                if not bool((torch.isfinite(absmax_K) & (absmax_K >= 0)).all()):
                    raise CalibrationError(f"{path}: {name} contains NaN, infinity or a negative value; {_AGAIN}")


class CalibrationWriter:
    """Appends one layer at a time to a ``statistics.safetensors``; nothing that was written stays in memory.

    The header comes first in the file and is known last: the place for the longest one is kept free.

    Args:
        path: the file.
        config: the model's.
        settings: how many rows a layer has at most.
    """

    def __init__(self, path: Path, config: ModelConfig, settings: SamplingSettings) -> None:
        self.layers: dict[str, LayerRecord] = {}
        self._wanted = _tensor_infos(config, settings.num_rows)
        self._length = len(header(self._wanted))  # the longest, as it has the most rows
        self._written: dict[str, TensorInfo] = {}
        self._file = path.open("wb")
        self._file.write(bytes(self._length))

    def __enter__(self) -> CalibrationWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, statistics: LayerStatistics) -> None:
        """Writes the statistics of a layer.

        Raises:
            OSError: the file system reports an error.
        """
        rows_NK = statistics.rows_NK
        self._write(f"{name}.absmax", statistics.absmax_K)
        self._write(f"{name}.rows", rows_NK)
        self.layers[name] = LayerRecord(
            num_seen=statistics.num_seen, num_rows=len(rows_NK), num_extreme=statistics.num_extreme
        )

    def add_cache(self, name: str, absmax_K: Tensor) -> None:
        """Writes the largest absolute values of what the KV cache holds, by a name of ``cache_names``.

        Raises:
            OSError: the file system reports an error.
        """
        self._write(f"{name}.absmax", absmax_K)

    def finish(self) -> None:
        """Writes the header. Every layer must have been added."""
        assert self._written.keys() == self._wanted.keys(), sorted(self._wanted.keys() - self._written.keys())
        self._file.seek(0)
        self._file.write(header(self._written, length=self._length))
        self._file.flush()

    def _write(self, name: str, tensor: Tensor) -> None:
        wanted = self._wanted[name].shape
        assert tensor.shape[-1] == wanted[-1] and len(tensor) <= wanted[0], f"{name} is {tuple(tensor.shape)}"  # noqa: PT018
        self._file.write(tensor.float().contiguous().view(-1).view(torch.uint8).numpy().data)
        self._written[name] = TensorInfo(tuple(tensor.shape), "F32")


@contextmanager
def new_calibration(
    path: Path,
    *,
    source: Source,
    config: ModelConfig,
    data: DataRecord,
    settings: SamplingSettings,
    force: bool = False,
) -> Iterator[CalibrationWriter]:
    """Yields a writer for every layer and cache of the model, and publishes the folder when the block ends.

    Args:
        path: the folder.
        source: the model, with the hashes of its files.
        config: of the model.
        data: what the model was run on.
        settings: how its inputs were sampled.
        force: whether to replace a calibration.

    Raises:
        UsageError: the folder exists and may not be replaced.
        ArtifactError: the folder cannot be written. If the block raises, nothing is left of it.
    """
    check_target(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(path) as staging:
            file = staging / STATISTICS_FILE
            with CalibrationWriter(file, config, settings) as writer:
                yield writer
                writer.finish()
            record = CalibrationRecord(
                created_by={"blip3v": blip3v.__version__, "torch": importlib.metadata.version("torch")},
                source=source,
                config=config,
                data=data,
                settings=settings,
                layers=writer.layers,
                sha256=hash_file(file),
            )
            (staging / RECORD_FILE).write_text(strict_json.dumps(dataclasses.asdict(record)), "utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def _read_record(path: Path) -> CalibrationRecord:
    values = strict_json.read_json(path)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CalibrationError(f"{path} has schema_version {version!r}; this blip3v reads {SCHEMA_VERSION}: {_AGAIN}")
    record = strict_json.from_dict(CalibrationRecord, values, str(path))
    wanted = linear_layers(record.config)
    problems = [f"missing {name}" for name in wanted if name not in record.layers]
    problems += [f"unknown {name}" for name in record.layers if name not in wanted]
    for name, entry in record.layers.items():
        if not 0 <= entry.num_extreme <= entry.num_rows <= record.settings.num_rows or entry.num_rows < 1:
            problems.append(f"{name} has {entry.num_rows} rows, {entry.num_extreme} of them extreme")
    if problems:
        raise CalibrationError(f"{path} does not describe the layers of its model: {listed(problems)}; {_AGAIN}")
    return record


def _tensor_infos(config: ModelConfig, rows: int | Mapping[str, LayerRecord]) -> dict[str, TensorInfo]:
    """The tensors of a ``statistics.safetensors``, with as many rows of each layer as its record says, or ``rows``."""
    infos = {}
    for name, layer in linear_layers(config).items():
        num_rows = rows if isinstance(rows, int) else rows[name].num_rows
        infos[f"{name}.absmax"] = TensorInfo((layer.num_inputs,), "F32")
        infos[f"{name}.rows"] = TensorInfo((num_rows, layer.num_inputs), "F32")
    width = config.text.num_kv_heads * config.text.head_dim
    return infos | {f"{name}.absmax": TensorInfo((width,), "F32") for name in cache_names(config.text)}


@contextmanager
def _broken(path: Path) -> Iterator[None]:
    """Makes errors of reading the folder CalibrationErrors."""
    try:
        yield
    except (ConfigError, ArtifactError) as error:
        raise CalibrationError(f"the calibration {path} cannot be used: {error}") from error
    except OSError as error:
        raise CalibrationError(f"the calibration {path} cannot be read: {error}") from error


def _differing(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first setting that differs, with both values."""
    for key in own:
        if own[key] != other.get(key):
            if isinstance(own[key], dict) and isinstance(other.get(key), dict):
                return f"{key}.{_differing(own[key], other[key])}"
            return f"{key} ({own[key]} and {other.get(key)})"
    return f"{next(iter(other.keys() - own.keys()), 'the config')}"
