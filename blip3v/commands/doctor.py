"""``blip3v doctor``: show what this machine can run and what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blip3v.commands.failure import print_json, with_error
from blip3v.commands.output import quiet_option
from blip3v.commands.tables import print_table
from blip3v.doctor import ENGINES, Machine, PackageState, Report, examine
from blip3v.errors import ProviderError
from blip3v.runtime.nvidia import Gpu
from blip3v.strict_json import dumps
from blip3v.units import format_bytes

__all__ = ["command"]


@click.command()
@click.option("--json", "as_json", is_flag=True, default=False, show_default=True, help="Print one JSON object.")
@quiet_option
def command(as_json: bool) -> None:
    """Show what this machine can run, what is missing, and the exact command that installs it.

    Exits with code 6 if no bundle can be run at all; a missing optional package alone is not an error.

    \b
    Examples:
      blip3v doctor
      blip3v doctor --json
    """
    report = examine()
    missing = report.verbs["ask"].missing
    error = ProviderError(f"no bundle can be run here: {'; '.join(missing)}") if missing else None
    if as_json:
        values = _as_dict(report)
        print_json(dumps(values if error is None else with_error(values, error)))
    else:
        console = Console(highlight=False)
        tables = (
            _machine_table(report.machine),
            _package_table(report),
            _accelerator_table(report),
            _verb_table(report),
        )
        for table in tables:
            print_table(console, table)
        for line in _advice(report):
            click.echo(line)
    if error is not None:
        raise error


def _as_dict(report: Report) -> dict[str, object]:
    values = dataclasses.asdict(report)
    values["packages"] = [
        {**dataclasses.asdict(state), "works": state.works, "install": state.install} for state in report.packages
    ]
    values["cuda"]["devices"] = [{"name": name, "memory_bytes": memory} for name, memory in report.cuda.devices]
    return values


def _machine_table(machine: Machine) -> Table:
    environment = "a virtual environment" if machine.virtual_env else "no virtual environment"
    flags = machine.cpu_flags
    free, total = machine.memory_available_bytes, machine.memory_total_bytes
    rows = {
        "Python": f"{machine.python}, {environment}: {machine.executable}",
        "system": f"{machine.system}, {machine.architecture}",
        "processor": f"{machine.cpu or 'unknown'}, {machine.num_cpus} usable",
        "instructions": _instructions(flags) if flags else "unknown",
        "memory": f"{_size(free)} available of {_size(total)}",
        "disk": f"{format_bytes(machine.disk_free_bytes)} free in the current folder",
    }
    return _table("machine", rows)


def _package_table(report: Report) -> Table:
    rows = {state.name: _state(state) for state in _shown(report.packages)}
    video = report.video
    devices = ", ".join(f"{name} ({format_bytes(memory)})" for name, memory in report.cuda.devices)
    rows |= {
        "providers": ", ".join(report.engine.providers) or "none",
        "H.264": f"decoder: {_yes(video.h264_decoder)}, encoder: {_yes(video.h264_encoder)}",
        "CUDA in torch": devices or f"none: {report.cuda.note}",
        "shipped models": ", ".join(report.models) or "none",
    }
    return _table(f"packages of blip3v {report.version}", rows)


def _accelerator_table(report: Report) -> Table:
    found = report.accelerators
    driver, gpus = found.driver, found.driver.gpus
    version = driver.version or "of unknown version"
    devices = [f"{gpu.name} ({_gpu_memory(gpu)}, {gpu.compute_capability})" for gpu in gpus]
    rows = {
        "NVIDIA driver": f"{version}, runs CUDA up to {driver.cuda}" if driver.cuda else "none",
        "NVIDIA GPUs": ", ".join(devices) or f"none: {driver.problem}",
    }
    for library in found.libraries:
        system = [f"{library.system} of the system"] if library.system else []
        rows[library.name] = ", ".join([*library.packages, *system]) or "not installed"
    listed = ", ".join(f"{device} ({name})" for device, name in found.openvino.items())
    rows["OpenVINO's devices"] = listed or f"none: {found.openvino_note}"
    return _table("accelerators", rows)


def _verb_table(report: Report) -> Table:
    rows = {f"blip3v {verb}": _yes(verdict.can_run) for verb, verdict in report.verbs.items()}
    rows |= {f"--backend {name}": _yes(not reason) for name, reason in report.accelerators.backends.items()}
    return _table("what can run here", rows)


def _advice(report: Report) -> list[str]:
    """What is missing, and for which verbs and back ends.

    Not in a table, since a command that people copy must not be wrapped.
    """
    verbs_of: dict[str, list[str]] = {}
    for verb, verdict in report.verbs.items():
        for missing in verdict.missing:
            verbs_of.setdefault(missing, []).append(verb)
    backends_of: dict[str, list[str]] = {}
    for backend, reason in report.accelerators.backends.items():
        if reason and reason not in verbs_of:
            backends_of.setdefault(reason, []).append(f"--backend {backend}")
    lines = [f"{', '.join(those)}: {missing}" for missing, those in [*verbs_of.items(), *backends_of.items()]]
    # No verb lacks the rest, but some option or backend does.
    others = {state.install: state for state in _shown(report.packages) if not state.works}
    named = "\n".join(lines)
    return lines + [f"{state.name}: run `{line}`" for line, state in others.items() if line and line not in named]


def _shown(packages: Sequence[PackageState]) -> list[PackageState]:
    """All but the other build of ONNX Runtime: only one may be installed, so the other is not missing."""
    engines = [state for state in packages if state.name in ENGINES]
    others = {state.name for state in engines if state.version is None and any(engine.version for engine in engines)}
    return [state for state in packages if state.name not in others]


def _state(state: PackageState) -> str:
    version = state.version or "not installed"
    return version if state.works else f"{version}, needs {state.at_least}"


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(text))  # plain text: names and versions are not markup
    return table


def _instructions(flags: dict[str, bool]) -> str:
    has, lacks = (" ".join(name for name, found in flags.items() if found is wanted) for wanted in (True, False))
    return "; ".join(filter(None, (has and f"has {has}", lacks and f"lacks {lacks}")))


def _gpu_memory(gpu: Gpu) -> str:
    if gpu.is_integrated:
        return "the machine's memory"
    free = "" if gpu.free_bytes is None else f"{format_bytes(gpu.free_bytes)} free of "
    return free + format_bytes(gpu.memory_bytes)


def _size(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else format_bytes(num_bytes)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
