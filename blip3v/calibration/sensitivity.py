"""What quantising one block of the model alone does to its answers: the KL divergence of the logits from fp32's.

Each block is quantised in simulation (``simulated.py``) in each format that it may be stored in. The logits are
compared at the positions that predict the tokens of known answers, which are fed in. A decoder's block costs only the
layers from it on, since the hidden states before every layer are kept on disk; the video encoder runs as a whole.
Not here: what is chosen from the table (``mixed.py``), and how it is drawn (``sensitivity_chart.py``).
"""

# Shapes: F frames, M video tokens, L tokens, P positions, D width, V logits.

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.bundle.layout import GRAPHS
from blip3v.bundle.precision import Precision
from blip3v.calibration.layers import HEAD, LinearLayer, linear_layers
from blip3v.calibration.plan import Plan
from blip3v.calibration.sensitivity_table import Block, Comparison, SensitivityTable, parameter_names
from blip3v.calibration.simulated import Quantizer, SimulatedDecoder, SimulatedVideoEncoder
from blip3v.config import ModelConfig
from blip3v.errors import CalibrationError
from blip3v.model.language import embedding_table
from blip3v.text.prompt import splice
from blip3v.training.batch import Row

__all__ = ["DEFAULT_FORMATS", "Answered", "Scan", "blocks", "measure_sensitivity", "new_table"]

# Formats to measure: those that ``mixed`` may store a graph's blocks in, and that are not exact to eleven bits.
DEFAULT_FORMATS = {GRAPHS[0]: ("int8",), GRAPHS[1]: ("int4-block", "int8-block")}

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Answered:
    """Questions about videos with their answers.

    Attributes:
        clips: pixels in [-1, 1] of each video, (F, 3, side, side).
        rows: for each clip, the ids of each prompt and its answer.

    Raises:
        CalibrationError: no clip, a clip without questions, or pixels that are not finite.
    """

    clips: Sequence[FloatArray]
    rows: Sequence[Sequence[Row]]

    def __post_init__(self) -> None:
        if not self.clips or len(self.clips) != len(self.rows) or not all(self.rows):
            raise CalibrationError(
                f"{len(self.clips)} clips with {[len(rows) for rows in self.rows]} questions; at least one question "
                "about every clip is needed"
            )
        if not all(np.isfinite(clip).all() for clip in self.clips):
            raise CalibrationError("a clip has pixels that are not finite; use videos that decode without errors")


def blocks(config: ModelConfig, precision: Precision) -> tuple[Block, ...]:
    """Returns the blocks to quantise one at a time, in the order in which the model computes them.

    Layers of a block that ``precision`` stores in different formats become blocks of their own.
    """
    found: dict[tuple[str, str], list[LinearLayer]] = {}
    for layer in linear_layers(config).values():
        form = precision.graphs[layer.graph].format_of(parameter_names(layer.name))
        found.setdefault((layer.block, form), []).append(layer)
    return tuple(
        Block(graph=layers[0].graph, name=name, layers=tuple(layer.name for layer in layers), format=form)
        for (name, form), layers in found.items()
    )


class Scan:
    """Compares the model with itself, some of its layers quantised. Close it, or use it as a context manager.

    Args:
        config: the model's.
        plan: the recipe, applied to the model.
        answered: what to ask it.
        group_size: weights of an output channel that share a scale in block formats.

    Raises:
        CalibrationError: the fp32 logits are not finite.
    """

    def __init__(self, config: ModelConfig, plan: Plan, answered: Answered, *, group_size: int) -> None:
        quantizer = Quantizer(plan, group_size)
        self.group_size = group_size
        self._config, self._clips = config, answered.clips
        self._video, self._decoder = SimulatedVideoEncoder(config, quantizer), SimulatedDecoder(config, quantizer)
        self._rows = [(clip, row) for clip, rows in enumerate(answered.rows) for row in rows]
        table_VD = embedding_table(plan.weights, config.text).numpy()
        self._texts: list[FloatArray] = [table_VD[row.ids] for _, row in self._rows]
        self._folder = tempfile.TemporaryDirectory(prefix="blip3v-sensitivity-")
        self._expected = self._run({}, before_layer=self._keep)
        if not all(bool(logits_PV.isfinite().all()) for logits_PV in self._expected):
            raise CalibrationError("the fp32 model's logits are not finite; fix the weights or the data")

    def __enter__(self) -> Scan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the hidden states from the disk."""
        self._folder.cleanup()

    @property
    def num_clips(self) -> int:
        """Videos."""
        return len(self._clips)

    @property
    def num_questions(self) -> int:
        """Questions about them."""
        return len(self._rows)

    @property
    def num_positions(self) -> int:
        """Positions at which logits are compared."""
        return sum(len(logits_PV) for logits_PV in self._expected)

    def compare(self, formats: Mapping[str, str]) -> Comparison:
        """Quantises layers and compares the logits with those of fp32.

        Args:
            formats: for each layer to quantise, a key of ``simulated.FORMATS``; other layers are fp32.

        Raises:
            CalibrationError: the quantised model's logits are not finite.
        """
        got = self._run(formats) if _of_video(formats) else self._run_decoder(formats)
        pairs = list(zip(self._expected, got, strict=True))
        kl = torch.cat([_kl(expected_PV, got_PV) for expected_PV, got_PV in pairs])
        same = torch.cat([expected_PV.argmax(-1) == got_PV.argmax(-1) for expected_PV, got_PV in pairs])
        if not bool(kl.isfinite().all()):
            raise CalibrationError(
                f"with {_listed(formats)} quantised, the logits are not finite; calibrate again, with other videos"
            )
        return Comparison(kl=float(kl.mean()), agreement=float(same.double().mean()))

    def _run(
        self,
        formats: Mapping[str, str],
        before_layer: Callable[[int, Sequence[Tensor]], None] = lambda index, hidden: None,
    ) -> list[Tensor]:
        of_video = _of_video(formats)
        rest = {name: form for name, form in formats.items() if name not in of_video}
        videos = [tokens_MD.numpy() for tokens_MD in self._video.all_tokens(self._clips, of_video)]
        hidden = [
            self._decoder.start(splice(text_LD, row.image_position, videos[clip]))
            for (clip, row), text_LD in zip(self._rows, self._texts, strict=True)
        ]
        return self._decoder.logits(hidden, self._positions(), rest, before_layer=before_layer)

    def _run_decoder(self, formats: Mapping[str, str]) -> list[Tensor]:
        """Begins with the hidden states kept before the first layer that is quantised."""
        first = _first_layer(formats, self._config.text.num_layers)
        return self._decoder.logits(self._kept(first), self._positions(), formats, first=first)

    def _positions(self) -> list[range]:
        """The positions that predict each token of an answer: those before them, after the video is spliced in."""
        shift = self._config.num_video_tokens - 2
        return [range(row.num_prompt_tokens + shift, len(row.ids) + shift) for _, row in self._rows]

    def _keep(self, index: int, hidden: Sequence[Tensor]) -> None:
        together = torch.cat([x_1LD[0] for x_1LD in hidden])
        np.save(self._file(index), together.numpy())

    def _kept(self, index: int) -> list[Tensor]:
        lengths = [len(row.ids) - 1 + self._config.num_video_tokens for _, row in self._rows]
        together = torch.from_numpy(np.load(self._file(index)))
        return [x_LD[None] for x_LD in together.split(lengths)]

    def _file(self, index: int) -> Path:
        return Path(self._folder.name) / f"{index}.npy"


def measure_sensitivity(
    scan: Scan,
    table: SensitivityTable,
    *,
    formats: Mapping[str, Sequence[str]] = DEFAULT_FORMATS,
    save: Callable[[SensitivityTable], None] = lambda table: None,
    progress: Callable[[str, int, int], None] = lambda block, done, total: None,
) -> SensitivityTable:
    """Quantises every block alone, in every format, and then all together.

    Args:
        scan: of the model.
        table: its blocks; what it holds already is not measured again.
        formats: by graph, what to quantise its blocks to: keys of ``simulated.FORMATS``.
        save: called with the table after each measurement, so that an interrupted scan can go on.
        progress: called with (the next block, measurements done, total measurements).

    Returns:
        The complete table.

    Raises:
        CalibrationError: the logits are not finite.
    """
    wanted = [(at, form) for at, block in enumerate(table.blocks) for form in formats[block.graph]]
    total = len(wanted) + 1
    for done, (at, form) in enumerate(wanted):
        block = table.blocks[at]
        progress(f"{block.short_name} in {form}", done, total)
        if form not in block.measured:
            table = table.with_result(at, form, scan.compare(dict.fromkeys(block.layers, form)))
            save(table)
    progress("all together", total - 1, total)
    if table.together is None:
        table = dataclasses.replace(table, together=scan.compare(_by_default(table)))
        save(table)
    progress("", total, total)
    return table


def new_table(scan: Scan, blocks: tuple[Block, ...], *, key: str) -> SensitivityTable:
    """Returns a table without measurements.

    Args:
        scan: what they are to be made with.
        blocks: of the model.
        key: of model, calibration and recipe.
    """
    return SensitivityTable(
        key=key,
        group_size=scan.group_size,
        num_clips=scan.num_clips,
        num_questions=scan.num_questions,
        num_positions=scan.num_positions,
        blocks=blocks,
    )


def _of_video(formats: Mapping[str, str]) -> dict[str, str]:
    """Those of the video encoder's layers."""
    return {name: form for name, form in formats.items() if not name.startswith("lang_model.")}


def _by_default(table: SensitivityTable) -> dict[str, str]:
    return {name: block.format for block in table.blocks if not block.is_kept for name in block.layers}


def _first_layer(formats: Mapping[str, str], num_layers: int) -> int:
    """The decoder's first layer that is quantised; ``num_layers`` if only the head is."""
    return min((int(name.split(".")[3]) for name in formats if name != HEAD), default=num_layers)


def _kl(expected_PV: Tensor, got_PV: Tensor) -> Tensor:
    """KL(expected || got) of each position, (P,), nats, float64."""
    log_p, log_q = expected_PV.double().log_softmax(-1), got_PV.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)  # rounding may make it -1e-17


def _listed(formats: Mapping[str, str]) -> str:
    few = list(formats)[:3]
    return ", ".join(few) + (f" and {len(formats) - len(few)} more layers" if len(formats) > len(few) else "")
