"""What ``blip3v bench`` refuses before it exports or measures anything."""

from __future__ import annotations

from pathlib import Path

from blip3v.bench.defaults import check_models
from blip3v.bench.run import check_clip
from blip3v.errors import UsageError
from blip3v.folders import check_bundle
from blip3v.publishing import check_writable

__all__ = ["CACHE", "check_baseline", "check_inputs", "check_options", "check_preset"]

CACHE = Path("blip3v-bench")  # where exported bundles are kept


def check_options(
    bundles: tuple[Path, ...],
    tokens: tuple[int, ...],
    precision: str | None,
    models: Path | None,
    preset: str | None,
) -> None:
    """Checks what depends on whether a bundle is named.

    Raises:
        UsageError: an option has no effect.
    """
    if tokens and not bundles and preset is None:
        raise UsageError("--tokens has no effect without BUNDLE: the default bundles have 1024, 128, 32 and 16 tokens")
    if bundles and (precision is not None or models is not None):
        option = "--precision" if precision is not None else "--models"
        raise UsageError(f"{option} has no effect on an existing bundle; leave it out, or name no bundle")


def check_baseline(baseline: Path | None, tolerance: float | None, allow_other_setup: bool) -> None:
    """Checks that what belongs to ``--baseline`` comes with it.

    Raises:
        UsageError: it does not.
    """
    if baseline is None and (tolerance is not None or allow_other_setup):
        option = "--tolerance" if tolerance is not None else "--allow-other-setup"
        raise UsageError(f"{option} has no effect without --baseline")


def check_preset(bundles: tuple[Path, ...], preset: str | None, init: str | None, models: Path | None) -> None:
    """Checks ``--preset`` and ``--init``.

    Raises:
        UsageError: one without the other, or with something else to measure.
    """
    if preset is None:
        if init is not None:
            raise UsageError("--init has no effect without --preset; the default bundles are trained")
        return
    if init is None:
        raise UsageError(f"--preset {preset} is measured with random weights; add --init random")
    if bundles or models is not None:
        other = "BUNDLE" if bundles else "--models"
        raise UsageError(f"--preset and {other} name different things to measure; leave one out")


def check_inputs(bundles: tuple[Path, ...], models: Path | None, clip: Path | None, *, trained: bool) -> None:
    """Checks that what is read exists; ``trained`` tells whether bundles are exported from the shipped models.

    Raises:
        VideoError: the clip is not a file.
        ArtifactError: a bundle or model is missing, or the folder of kept bundles cannot be written.
    """
    if clip is not None:
        check_clip(clip)
    for bundle in bundles:
        check_bundle(bundle)
    if not bundles:
        if trained:
            check_models(models)
        check_writable(CACHE / "bundle")
