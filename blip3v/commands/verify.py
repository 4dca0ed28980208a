"""``blip3v verify``: check the hash of every file in a bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from blip3v.bundle.verify import VerifyReport, verify_bundle
from blip3v.commands.local_models import download_option, local_model
from blip3v.errors import ArtifactHashError

__all__ = ["command"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@download_option
@click.option("--json", "as_json", is_flag=True, default=False, show_default=True, help="Print one JSON object.")
def command(bundle: Path, as_json: bool) -> None:
    """Check the hash of every file in BUNDLE against its manifest.

    Exits with code 3 if a file has changed, is missing, or does not belong there.

    \b
    Examples:
      blip3v verify tiny-tokenlearner-32-fp16
      blip3v verify tiny-tokenlearner-32-fp16 --json
    """
    bundle = local_model(bundle)
    report = verify_bundle(bundle)
    if as_json:
        click.echo(json.dumps({"path": str(bundle), "ok": report.ok, **dataclasses.asdict(report)}))
    else:
        _show(report)
    if not report.ok:
        what = report.problem or ", ".join(f"{result.name} ({result.status})" for result in report.bad)
        raise ArtifactHashError(f"{bundle} is not as it was written: {what}; copy it or export it again")


def _show(report: VerifyReport) -> None:
    for result in report.files:
        click.echo(f"{result.status:8} {result.name}{'  ' + result.detail if result.detail else ''}")
    if report.ok:
        click.echo(f"all {len(report.files)} files are unchanged")
