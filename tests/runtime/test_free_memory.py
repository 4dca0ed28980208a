"""Free memory from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip3v.runtime.memory import available_bytes, format_bytes, require

GIB = 2**30


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _machine(gib: int) -> dict[str, str]:
    return {"proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable:   {gib * GIB // 1024} kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (_machine(8), 8 * GIB),
        ({}, None),
        (
            _machine(8)
            | {
                "proc/self/cgroup": "0::/app\n",
                "sys/fs/cgroup/app/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/app/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/app/memory.stat": f"anon 1\ninactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        (
            _machine(8)
            | {
                "proc/self/cgroup": "0::/app/worker\n",
                "sys/fs/cgroup/app/worker/memory.max": "max\n",
                "sys/fs/cgroup/app/worker/memory.current": "1\n",
                "sys/fs/cgroup/app/memory.max": f"{GIB}\n",
                "sys/fs/cgroup/app/memory.current": "0\n",
            },
            GIB,
        ),
        (
            _machine(8)
            | {
                "proc/self/cgroup": "3:cpu:/x\n4:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{5 * GIB}\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": f"{2 * GIB}\n",
            },
            3 * GIB,
        ),
        (
            _machine(8)
            | {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": f"{GIB}\n",
                "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
            },
            0,
        ),
    ],
    ids=["machine", "unknown", "group", "parent-group", "version-1", "over-its-limit"],
)
def test_free_memory_is_the_least_of_all_limits(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert available_bytes(_write(tmp_path, files)) == expected


def test_this_machine_tells_something_or_nothing() -> None:
    free = available_bytes()
    assert free is None or free > 2**20
    require(1, "a byte", "")


def test_sizes_read_well() -> None:
    assert (format_bytes(3 * 2**20), format_bytes(3 * GIB // 2)) == ("3 MiB", "1.5 GiB")
