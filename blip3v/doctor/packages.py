"""The optional packages: which are installed, which are missing or too old, and the line that mends it."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass

from blip3v.extras import EXTRAS, Package, pip_line

__all__ = ["ENGINES", "PackageState", "examine_packages", "installed_version"]

ENGINES = ("onnxruntime", "onnxruntime-gpu")  # two builds that own the same folder


@dataclass(frozen=True, kw_only=True)
class PackageState:
    """One optional package as it is here."""

    name: str  # as pip knows it
    extras: tuple[str, ...]  # those that bring it
    version: str | None  # None: not installed
    at_least: str  # oldest version that works

    @property
    def works(self) -> bool:
        """Whether it is installed and new enough."""
        return self.version is not None and _numbers(self.version) >= _numbers(self.at_least)

    @property
    def install(self) -> str | None:
        """The line that installs or renews it; None where it works."""
        return None if self.works else pip_line(self.extras[0])


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine_packages(version_of: Callable[[str], str | None] = installed_version) -> dict[str, PackageState]:
    """Looks for every package that an extra brings.

    Args:
        version_of: tells the installed version of a distribution.

    Returns:
        Name of a package -> its state, in the order of the extras.
    """
    states: dict[str, PackageState] = {}
    for package in dict.fromkeys(package for packages in EXTRAS.values() for package in packages):
        states[package.name] = _state(package, version_of(package.name))
    return states


def _state(package: Package, version: str | None) -> PackageState:
    extras = tuple(extra for extra, packages in EXTRAS.items() if package in packages)
    return PackageState(name=package.name, extras=extras, version=version, at_least=package.at_least)


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers at the front of a version: 2.13.0+cpu gives (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
