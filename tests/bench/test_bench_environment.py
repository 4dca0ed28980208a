from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blip3v.bench.environment import describe_environment, peak_rss_bytes

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


def test_a_system_that_tells_nothing_gives_no_made_up_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    found = describe_environment(tmp_path)
    assert (found["physical_cores"], found["cpu_quota"]) == (None, None)
    assert peak_rss_bytes(tmp_path) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_is_the_process_own() -> None:
    """A process inherits the peak of the one that started it in getrusage; it must not show here."""
    held = np.ones(2**26, np.uint8)  # 64 MiB, in this process only
    code = "from blip3v.bench.environment import peak_rss_bytes as peak; {}print(peak())"
    sizes = []
    for extra in ("", "import numpy; a = numpy.ones(2**27, 'uint8'); del a; "):
        done = subprocess.run([sys.executable, "-c", code.format(extra)], capture_output=True, text=True, check=True)
        sizes.append(int(done.stdout))
    own = peak_rss_bytes()
    assert own is not None
    assert own > held.nbytes
    assert 2**27 * 0.9 < sizes[1] - sizes[0] < 2**27 * 1.5
    assert sizes[0] < 2**26
