"""What quantising one block of the model alone does to its answers: the KL divergence of the logits from fp32's.

Each block is quantised in simulation (``simulated.py``) in each format that it may be stored in. The logits are
compared at the positions that predict the tokens of known answers, which are fed in. A block costs only the layers from
it on, since the fp32 hidden states before every layer are kept on disk. All that grows with the number of samples is
on disk, and read one sample at a time. Not here: what is chosen from the table (``mixed.py``), and how it is drawn
(``sensitivity_chart.py``).
"""

# Shapes: F frames, M video tokens, L tokens, N positions, D width, V logits.

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip3v.bundle.layout import GRAPHS
from blip3v.bundle.precision import Precision
from blip3v.calibration.data import AskedClip
from blip3v.calibration.layers import LinearLayer, linear_layers
from blip3v.calibration.plan import Plan
from blip3v.calibration.sensitivity_table import TABLE_FILE, Block, Comparison, SensitivityTable, parameter_names
from blip3v.calibration.simulated import HiddenStates, Quantizer, SimulatedDecoder, SimulatedVideoEncoder, Take
from blip3v.calibration.spool import Spool
from blip3v.config import ModelConfig
from blip3v.errors import CalibrationError
from blip3v.model.language import embedding_table
from blip3v.publishing import cannot_write, require_disk
from blip3v.text.prompt import splice

__all__ = [
    "DEFAULT_FORMATS",
    "GROUP_SIZE",
    "Scan",
    "add_sensitivity",
    "blocks",
    "measure_sensitivity",
]

# Formats to measure: those that ``mixed`` may store a graph's blocks in, and that are not exact to eleven bits.
DEFAULT_FORMATS = {GRAPHS[0]: ("int8",), GRAPHS[1]: ("int4-block", "int8-block")}

GROUP_SIZE = 128
_MIXED = Precision.parse("mixed")

_DECODER = "lang_model."
_DECODER_LAYERS = "lang_model.model.layers."
_VISION_LAYERS = "vision_encoder.encoder.layers."


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

    The fp32 model runs first. Its hidden states before every layer are kept on disk.

    Args:
        config: the model's.
        plan: the recipe, applied to the model.
        clips: with questions and answers.
        folder: where temporary files are; nothing is left there.
        group_size: weights of an output channel that share a scale in block formats.

    Raises:
        CalibrationError: no questions, a clip of another shape or with NaN, or logits that are not finite.
        ArtifactError: the disk has no space for what waits there.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: Plan,
        clips: Sequence[AskedClip],
        *,
        folder: Path,
        group_size: int = GROUP_SIZE,
    ) -> None:
        self.group_size, self.num_clips = group_size, len(clips)
        self._prompts = [(at, asked) for at, clip in enumerate(clips) for asked in clip.prompts]
        if not self._prompts:
            raise CalibrationError(f"{self.num_clips} clips without a question; at least one question is needed")
        self.config = config
        quantizer = Quantizer(plan, group_size)
        self._video, self._decoder = SimulatedVideoEncoder(config, quantizer), SimulatedDecoder(config, quantizer)
        # Those that predict the answer's tokens and its end: the last of the prompt, and each of the answer.
        ends = [(asked.prompt.length(config.num_video_tokens), len(asked.answer_ids)) for _, asked in self._prompts]
        self._positions = [range(length - 1, length + num_answer) for length, num_answer in ends]
        with ExitStack() as stack:
            self._open_spools(folder, stack)
            self._write_texts(embedding_table(plan.weights, config.text))
            self._run_fp32(clips)
            self._opened = stack.pop_all()

    def _open_spools(self, folder: Path, stack: ExitStack) -> None:
        vision, text = self.config.vision, self.config.text
        width, num_tokens = text.hidden_size, self.config.num_video_tokens
        patches = [(self.config.num_frames, vision.num_patches, vision.hidden_size)] * self.num_clips
        texts = [(len(asked.prompt.ids) + len(asked.answer_ids), width) for _, asked in self._prompts]
        hidden = [(num_ids - 1 + num_tokens, width) for num_ids, _ in texts]
        tokens = [(num_tokens, width)] * self.num_clips
        logits = [(len(positions), text.num_logits) for positions in self._positions]
        kept = _HiddenStates.num_bytes(patches, vision.num_layers) + _HiddenStates.num_bytes(hidden, text.num_layers)
        require_disk(folder, kept + _num_bytes([*texts, *tokens, *logits]), "the sensitivity scan")
        self._of_video = stack.enter_context(_HiddenStates(folder, patches, vision.num_layers))
        self._of_decoder = stack.enter_context(_HiddenStates(folder, hidden, text.num_layers))
        self._texts, self._tokens, self._expected = (
            stack.enter_context(Spool(folder, shapes)) for shapes in (texts, tokens, logits)
        )

    def _write_texts(self, table_VD: Tensor) -> None:
        for at, (_, asked) in enumerate(self._prompts):
            self._texts.write(at, table_VD[[*asked.prompt.ids, *asked.answer_ids]])

    def _run_fp32(self, clips: Sequence[AskedClip]) -> None:
        def keep(at: int, logits_NV: Tensor) -> None:
            if not bool(logits_NV.isfinite().all()):
                raise CalibrationError("the fp32 model's logits are not finite; fix its weights")
            self._expected.write(at, logits_NV)

        for at, clip in enumerate(clips):
            self._of_video.kept(0).write(at, self._video.start(_pixels(clip, self.config)))
        self._video.tokens(self._of_video.kept, {}, self._tokens.write)
        self._ask(self._of_decoder.kept(0))
        self._decoder.logits(self._of_decoder.kept, self._positions, {}, keep)

    def __enter__(self) -> Scan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the temporary files."""
        self._opened.close()

    @property
    def num_questions(self) -> int:
        """Questions about all clips."""
        return len(self._prompts)

    @property
    def num_positions(self) -> int:
        """Positions at which logits are compared."""
        return sum(map(len, self._positions))

    def compare(self, formats: Mapping[str, str]) -> Comparison:
        """Quantises layers and compares the logits with those of fp32.

        Args:
            formats: for each layer to quantise, a key of ``simulated.FORMATS``; other layers are fp32.

        Raises:
            CalibrationError: the quantised model's logits are not finite.
            ConfigError: a layer that the model does not have.
        """
        divergences, agreements = [], []

        def add(at: int, got_NV: Tensor) -> None:
            expected_NV = self._expected.read(at)
            divergences.append(_kl(expected_NV, got_NV))
            agreements.append(expected_NV.argmax(-1) == got_NV.argmax(-1))

        self._run_quantized(formats, add)
        kl, same = torch.cat(divergences), torch.cat(agreements)
        if not bool(kl.isfinite().all()):
            raise CalibrationError(
                f"with {_listed(formats)} quantised, the logits are not finite; calibrate again, with other videos"
            )
        return Comparison(kl=float(kl.mean()), agreement=float(same.double().mean()))

    def _run_quantized(self, formats: Mapping[str, str], take: Take) -> None:
        """Gives ``take`` each prompt's logits; begins before the first layer that is quantised."""
        of_decoder = {name: form for name, form in formats.items() if name.startswith(_DECODER)}
        of_video = {name: form for name, form in formats.items() if name not in of_decoder}
        if of_video:
            first = _first_layer(of_video, _VISION_LAYERS, self.config.vision.num_layers)
            self._video.tokens(self._of_video.from_layer(first), of_video, self._tokens.write, first=first)
            self._ask(self._of_decoder.working(0))
            self._decoder.logits(self._of_decoder.working, self._positions, of_decoder, take)
        else:
            first = _first_layer(of_decoder, _DECODER_LAYERS, self.config.text.num_layers)
            hidden = self._of_decoder.from_layer(first)
            self._decoder.logits(hidden, self._positions, of_decoder, take, first=first)

    def _ask(self, hidden: Spool) -> None:
        """Writes the decoder's inputs: each prompt with its video's tokens and its answer."""
        for at, (clip, asked) in enumerate(self._prompts):
            text_LD, tokens_MD = self._texts.read(at).numpy(), self._tokens.read(clip).numpy()
            embeds_LD = splice(text_LD, asked.prompt.image_position, tokens_MD)
            hidden.write(at, self._decoder.start(torch.from_numpy(embeds_LD)))


class _HiddenStates:
    """Hidden states of all samples on disk: those of the fp32 model before each layer, and those of a run.

    Args:
        folder: of the temporary files.
        shapes: of the hidden states of each sample.
        num_layers: of the part of the model.
    """

    def __init__(self, folder: Path, shapes: Sequence[tuple[int, ...]], num_layers: int) -> None:
        with ExitStack() as stack:
            self._kept = [stack.enter_context(Spool(folder, shapes)) for _ in range(num_layers + 1)]
            self._working = stack.enter_context(Spool(folder, shapes))
            self._opened = stack.pop_all()

    @staticmethod
    def num_bytes(shapes: Sequence[tuple[int, ...]], num_layers: int) -> int:
        """What they take on disk."""
        return (num_layers + 2) * _num_bytes(shapes)

    def kept(self, layer: int) -> Spool:
        """Those of the fp32 model before a layer."""
        return self._kept[layer]

    def working(self, layer: int) -> Spool:
        """Those of a run before any layer."""
        return self._working

    def from_layer(self, first: int) -> HiddenStates:
        """Those of a run that begins at layer ``first`` of the fp32 model."""
        return lambda layer: self._kept[layer] if layer == first else self._working

    def __enter__(self) -> _HiddenStates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


def _num_bytes(shapes: Sequence[tuple[int, ...]]) -> int:
    return 4 * sum(math.prod(shape) for shape in shapes)


def _pixels(clip: AskedClip, config: ModelConfig) -> Tensor:
    pixels_FCHW, side = clip.load(), config.vision.image_size
    wanted = (config.num_frames, 3, side, side)
    if pixels_FCHW.shape != wanted or not np.isfinite(pixels_FCHW).all():
        raise CalibrationError(
            f"{clip.name} has pixels {pixels_FCHW.shape}; this model takes finite ones of {wanted}; use another video"
        )
    return torch.from_numpy(pixels_FCHW)


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
        formats: by graph, what to quantise its blocks to besides their own formats: keys of ``simulated.FORMATS``.
        save: called with the table after each measurement, so that an interrupted scan can go on.
        progress: called with (the next block, measurements done, total measurements).

    Returns:
        The complete table.

    Raises:
        CalibrationError: the logits are not finite.
    """
    wanted = [(at, form) for at, block in enumerate(table.blocks) for form in _to_measure(block, formats)]
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


def add_sensitivity(
    folder: Path,
    scan: Scan,
    *,
    statistics_sha256: str,
    recipe: Mapping[str, Any],
    precision: Precision = _MIXED,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda block, done, total: None,
) -> SensitivityTable:
    """Measures the sensitivity of every block into ``sensitivity.json`` of a calibration's folder.

    Args:
        folder: the calibration's. If an interrupted scan is in it, this one goes on.
        scan: of the model that was calibrated.
        statistics_sha256: of the calibration's statistics.
        recipe: fields of the ``RecipeOptions`` of the scan's plan.
        precision: decides which layers are quantised by default, and to what.
        force: whether to replace a table that was measured with something else.
        progress: called with (the next block, measurements done, total measurements).

    Raises:
        CalibrationError: the folder has a table that was measured with something else, or the logits are not finite.
        ArtifactError: the folder cannot be written.
    """
    table = SensitivityTable(
        statistics_sha256=statistics_sha256,
        recipe=dict(recipe),
        group_size=scan.group_size,
        num_clips=scan.num_clips,
        num_questions=scan.num_questions,
        num_positions=scan.num_positions,
        blocks=blocks(scan.config, precision),
    )
    if (folder / TABLE_FILE).exists() and not force:
        found = SensitivityTable.load(folder, statistics_sha256=statistics_sha256, recipe=recipe)
        if found.without_results() != table:
            raise CalibrationError(
                f"{folder / TABLE_FILE} was measured with other samples, groups or formats",
                remedy="replace it with `force=True`",
            )
        table = found
    try:
        return measure_sensitivity(scan, table, save=lambda partial: partial.save(folder), progress=progress)
    except OSError as error:
        raise cannot_write(folder / TABLE_FILE, error) from error


def _to_measure(block: Block, formats: Mapping[str, Sequence[str]]) -> list[str]:
    own = () if block.is_kept else (block.format,)
    return list(dict.fromkeys((*own, *formats[block.graph])))


def _by_default(table: SensitivityTable) -> dict[str, str]:
    return {name: block.format for block in table.blocks if not block.is_kept for name in block.layers}


def _first_layer(formats: Mapping[str, str], layers: str, num_layers: int) -> int:
    """The first of ``layers`` that is quantised; ``num_layers`` if only what follows them is."""
    numbers = [name.removeprefix(layers).partition(".")[0] for name in formats if name.startswith(layers)]
    return min([num_layers, *map(int, numbers)])


def _kl(expected_NV: Tensor, got_NV: Tensor) -> Tensor:
    """KL(expected || got) of each position, (N,), nats, float64."""
    log_p, log_q = expected_NV.double().log_softmax(-1), got_NV.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)  # rounding may make it -1e-17


def _listed(formats: Mapping[str, str]) -> str:
    few = list(formats)[:3]
    return ", ".join(few) + (f" and {len(formats) - len(few)} more layers" if len(formats) > len(few) else "")
