from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from blip3v.bench.environment import describe_environment

CPUINFO = """\
processor\t: 0
model name\t: A CPU
physical id\t: 0
core id\t\t: 0

processor\t: 1
model name\t: A CPU
physical id\t: 0
core id\t\t: 0

processor\t: 2
model name\t: A CPU
physical id\t: 0
core id\t\t: 1
"""


def test_facts_come_from_proc_and_the_control_group(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(CPUINFO)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n")
    found = describe_environment(tmp_path)
    assert (found["cpu"], found["physical_cores"], found["cpu_quota"]) == ("A CPU", 2, 1.5)
    assert found["packages"]["numpy"] == np.__version__
    assert json.loads(json.dumps(found)) == found


def test_nothing_is_made_up_on_a_system_that_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    found = describe_environment(tmp_path)
    assert (found["physical_cores"], found["cpu_quota"]) == (None, None)
