"""The precision ``mixed``: the lowest format for every block whose answers bear it, chosen from a sensitivity table.

The budget is the mean KL divergence of the logits from fp32's, in nats. What all blocks do together is predicted as
the sum of what each does alone. That holds while errors are small and independent: the KL divergence is quadratic in
the logits' error, and the cross terms of independent errors vanish on average. ZeroQ (Cai et al. 2020, section 3.2)
assumes the same. A scan also measures all blocks together, and the prediction is scaled where that is more than the
sum. No PyTorch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3v import strict_json
from blip3v.bundle.precision import PRECISIONS, GraphPrecision, Island, Precision
from blip3v.calibration.options import DEFAULT_MAX_KL
from blip3v.calibration.record import RECORD_FILE
from blip3v.calibration.sensitivity_table import EXACT, Block, Comparison, SensitivityTable, names_of
from blip3v.errors import CalibrationError, UsageError

__all__ = ["choose_mixed", "predicted_kl", "resolve_mixed"]

# What a sensitive block is raised to. Half precision counts as exact.
_NEXT = {"int4-block": "int8-block", "int8-block": "float16-stored", "int8": "float16-stored"}


def choose_mixed(table: SensitivityTable, max_kl: float, base: Precision) -> Precision:
    """Raises the most sensitive block to its next format until the predicted KL divergence is within the budget.

    The order in which blocks are raised does not depend on the budget: a smaller one raises the same and further ones.

    Islands that are chosen by node names (``Precision.with_nodes``) apply before those added here. Only the exported
    graph tells which layers they hold, so the prediction leaves them out: it is an upper bound where they keep layers
    in floating point, and lacks the cost of layers that only they quantise.

    Args:
        table: complete.
        max_kl: the budget, mean KL divergence of the logits in nats.
        base: the formats to begin with. Graphs that are not ``mixed`` keep theirs, and count.

    Returns:
        ``base`` with an island for each block that was raised, named after the block and what it costs in its
        first format.

    Raises:
        UsageError: a budget that is negative or not a number.
        CalibrationError: the table is not complete, or lacks a format of a graph that is not ``mixed``; or such graphs
            exceed the budget.
    """
    if not 0 <= max_kl < float("inf"):
        raise UsageError(
            f"max_kl is {max_kl}; a number of nats from 0 is expected", remedy=f"try `max_kl={DEFAULT_MAX_KL}`"
        )
    _check_groups(table, base)
    _check_measured(table, base)
    first = _formats(table, base)
    formats = list(first)
    free = [at for at, block in enumerate(table.blocks) if base.graphs[block.graph].needs_sensitivity]
    while _predicted(table, formats) > max_kl:
        at = max(free, key=lambda at: _cost(table.blocks[at], formats[at]), default=None)
        if at is None or _cost(table.blocks[at], formats[at]) == 0:
            raise _unreachable(table, formats, max_kl, base)
        formats[at] = _NEXT[formats[at]]
    raised = [(table.blocks[at], first[at], formats[at]) for at in free if formats[at] != first[at]]
    return dataclasses.replace(
        base,
        **{
            graph: _with_islands(spec, [x for x in raised if x[0].graph == graph])
            for graph, spec in base.graphs.items()
        },
    )


def resolve_mixed(
    precision: Precision, calibration: Path | None, *, recipe: Mapping[str, Any], max_kl: float = DEFAULT_MAX_KL
) -> Precision:
    """Chooses the formats of graphs that are ``mixed``; any other precision is returned as it is.

    Args:
        precision: as ``Precision.parse`` returns it.
        calibration: the folder of the calibration, with its sensitivity table; None: there is none.
        recipe: fields of the ``RecipeOptions`` that the graphs are quantised with.
        max_kl: the budget, mean KL divergence of the logits in nats.

    Raises:
        UsageError: no calibration, or a budget that is negative or not a number.
        CalibrationError: no table, or one that was measured with something else; or graphs that are not ``mixed``
            exceed the budget or are in formats that it lacks.
        ConfigError: a file of the calibration is broken.
    """
    if not precision.needs_sensitivity:
        return precision
    if calibration is None:
        raise UsageError(
            f"precision {precision} chooses formats from the sensitivity table of a calibration; make both with "
            "the sensitivity scan of `blip3v calibrate`",
            remedy="then give the folder as `calibration`",
        )
    if not (calibration / RECORD_FILE).is_file():
        raise CalibrationError(
            f"{calibration} has no {RECORD_FILE}; make a calibration with a sensitivity scan: `blip3v calibrate`"
        )
    statistics = str(strict_json.read_json(calibration / RECORD_FILE).get("sha256"))
    table = SensitivityTable.load(calibration, statistics_sha256=statistics, recipe=recipe)
    return choose_mixed(table, max_kl, precision)


def predicted_kl(table: SensitivityTable, precision: Precision) -> float:
    """Returns the mean KL divergence of the logits that the table predicts for a precision, in nats.

    Raises:
        CalibrationError: the table is not complete, or lacks a format.
    """
    return _predicted(table, _formats(table, precision))


def _formats(table: SensitivityTable, precision: Precision) -> list[str]:
    """The lowest format of each block's layers."""
    order = (*_NEXT, *EXACT)

    def of_block(block: Block) -> str:
        formats = {precision.graphs[block.graph].format_of(names_of([layer])) for layer in block.layers}
        unknown = formats - set(order)
        if unknown:
            raise CalibrationError(
                f"{block.short_name} in {', '.join(unknown)} was not measured; allowed: {', '.join(order)}"
            )
        return min(formats, key=order.index)

    return [of_block(block) for block in table.blocks]


def _predicted(table: SensitivityTable, formats: list[str]) -> float:
    together = _together(table)
    alone = sum(_cost(block, form) for block, form in zip(table.blocks, formats, strict=True))
    return alone * max(1.0, together.kl / table.total_kl if table.total_kl else 1.0)


def _together(table: SensitivityTable) -> Comparison:
    if table.together is None:
        raise CalibrationError("the sensitivity scan is not complete; go on with it in `blip3v calibrate`")
    return table.together


def _cost(block: Block, form: str) -> float:
    if form in EXACT:
        return 0.0
    if form not in block.measured:
        raise CalibrationError(
            f"the sensitivity table has no {block.short_name} in {form}, only in "
            f"{', '.join(block.measured) or 'no format'}; measure it again in `blip3v calibrate`"
        )
    return block.measured[form].kl


def _with_islands(spec: GraphPrecision, raised: list[tuple[Block, str, str]]) -> GraphPrecision:
    islands = [
        Island(
            name=f"{block.short_name}: {block.measured[first].kl:.2g} nats in {first}",
            parameters=names_of(block.layers),
            weights=form,
        )
        for block, first, form in raised
    ]
    by_node = [island for island in spec.islands if island.nodes]
    others = [island for island in spec.islands if not island.nodes]
    return dataclasses.replace(spec, islands=(*by_node, *islands, *others))


def _check_groups(table: SensitivityTable, base: Precision) -> None:
    for graph, spec in base.graphs.items():
        if spec.needs_sensitivity and spec.group_size not in (None, table.group_size):
            raise CalibrationError(
                f"the {graph} has groups of {spec.group_size} weights, and the sensitivity was measured with groups of "
                f"{table.group_size}; use groups of {table.group_size}"
            )


def _check_measured(table: SensitivityTable, base: Precision) -> None:
    """Refuses a graph in formats that the scan does not measure, beside one that is ``mixed``."""
    _together(table)
    for graph, spec in base.graphs.items():
        if spec.needs_sensitivity or _is_measured(table, graph, spec):
            continue
        specs = [(name, getattr(entry, graph)) for name, entry in PRECISIONS.items()]
        allowed = [name for name, other in specs if other.name == name and _is_measured(table, graph, other)]
        raise CalibrationError(
            f"the {graph} cannot be {spec.name} in precision {base}: the sensitivity scan does not measure it in that "
            f"format; allowed for the {graph}: {', '.join(allowed)}"
        )


def _is_measured(table: SensitivityTable, graph: str, spec: GraphPrecision) -> bool:
    blocks = [block for block in table.blocks if block.graph == graph]
    return all(
        form in EXACT or form in block.measured
        for block in blocks
        for form in {spec.format_of(names_of([layer])) for layer in block.layers}
    )


def _unreachable(table: SensitivityTable, formats: list[str], max_kl: float, base: Precision) -> CalibrationError:
    fixed = ", ".join(f"{graph}={spec.name}" for graph, spec in base.graphs.items() if not spec.needs_sensitivity)
    return CalibrationError(
        f"{fixed} alone is predicted to cost {_predicted(table, formats):.2g} nats, more than the budget of {max_kl:g}",
        remedy="choose `precision='mixed'` for every graph, or a larger `max_kl`",
    )
