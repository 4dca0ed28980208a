"""What this machine can run, and what is missing: facts first, then what follows from them for each verb.

Nothing here installs or changes anything. Versions come from the metadata of installed packages, so that a heavy
package is not imported to learn its version.
"""

from __future__ import annotations

from blip3v.doctor.machine import Machine, examine_machine
from blip3v.doctor.packages import PackageState, examine_packages
from blip3v.doctor.report import Report, Verdict, examine, verdicts

__all__ = [
    "Machine",
    "PackageState",
    "Report",
    "Verdict",
    "examine",
    "examine_machine",
    "examine_packages",
    "verdicts",
]
