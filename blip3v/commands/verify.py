"""``blip3v verify``: check the hash of every file in a bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from blip3v.bundle.verify import VerifyReport, verify_bundle
from blip3v.commands.failure import print_json, with_error
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.output import quiet_option
from blip3v.errors import ArtifactHashError
from blip3v.units import format_count

__all__ = ["command"]


@click.command()
@click.argument("bundle", type=MODEL_PATH)
@download_option
@click.option("--json", "as_json", is_flag=True, default=False, show_default=True, help="Print one JSON object.")
@quiet_option
def command(bundle: Path, as_json: bool) -> None:
    """Check the hash of every file in BUNDLE against its manifest.

    Exits with code 3 if a file has changed, is missing, or does not belong there.

    \b
    Examples:
      blip3v verify blip3v-tiny-tokenlearner-32tok-fp16
      blip3v verify blip3v-tiny-tokenlearner-32tok-fp16 --json
    """
    bundle = local_model(bundle)
    report = verify_bundle(bundle)
    error = None if report.ok else _error(bundle, report)
    if as_json:
        values = {"path": str(bundle), "ok": report.ok, **dataclasses.asdict(report)}
        print_json(json.dumps(values if error is None else with_error(values, error)))
    else:
        _show(report)
    if error is not None:
        raise error


def _error(bundle: Path, report: VerifyReport) -> ArtifactHashError:
    what = report.problem or ", ".join(f"{result.name} ({result.status})" for result in report.bad)
    return ArtifactHashError(f"{bundle} is not as it was written: {what}; copy it or export it again")


def _show(report: VerifyReport) -> None:
    for result in report.files:
        click.echo(f"{result.status:8} {result.name}{'  ' + result.detail if result.detail else ''}")
    if report.ok:
        click.echo(f"all {format_count(len(report.files), 'file')} are unchanged")
