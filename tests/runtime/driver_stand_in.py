"""A fake of NVIDIA's driver library for machines without one: the calls that ``runtime/nvidia.py`` makes of it.

Arguments are the real ones: pointers to write to, sizes, numbers of devices. Contexts are counted, since one that is
not released again would stay on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CONTEXT = 0xC0


class FakeDriver:
    """The library.

    Args:
        names: of the GPUs; the first has 8 GiB, each other as much more, and compute capability 8.6, 8.7 and so on.
        code: what ``cuInit`` returns.
        free: returns what is free of the first GPU's memory.
        is_integrated: whether that is the machine's memory.

    Attributes:
        num_contexts: that are retained and not released.
        fails: the name of a function -> what its next call returns.
    """

    def __init__(
        self,
        names: list[str],
        code: int = 0,
        *,
        free: Callable[[], int] = lambda: 2**32,
        is_integrated: bool = False,
    ) -> None:
        self.names = names
        self.code = code
        self.free = free
        self.is_integrated = is_integrated
        self.num_contexts = 0
        self.fails: dict[str, int] = {}
        self._current: list[int] = []

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.code

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13020
        return 0

    def cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = {100: b"no CUDA-capable device is detected"}.get(code)
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index + 10  # a handle is not its index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:  # noqa: N802
        name.value = self.names[device - 10].encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, num_bytes: Any, device: int) -> int:  # noqa: N802
        num_bytes._obj.value = (device - 9) * 2**33
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:  # noqa: N802
        value._obj.value = {18: int(self.is_integrated), 75: 8, 76: 6 + device - 10}[attribute]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:  # noqa: N802
        code = self.fails.pop("cuDevicePrimaryCtxRetain", 0)
        if not code:
            assert device == 10
            context._obj.value = CONTEXT
            self.num_contexts += 1
        return code

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:  # noqa: N802
        assert not self._current, "released while it is current"
        self.num_contexts -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        assert context.value == CONTEXT
        code = self.fails.pop("cuCtxPushCurrent_v2", 0)
        if not code:
            self._current.append(context.value)
        return code

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        context._obj.value = self._current.pop()
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        assert self._current, "there is no current context"
        free._obj.value, total._obj.value = self.free(), 2**33
        return self.fails.pop("cuMemGetInfo_v2", 0)
