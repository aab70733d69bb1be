"""Numbers between the memory of a device and that of the CPU, while either goes on computing.

Through pinned memory of a bounded size, two halves in turn. On a CPU it is a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Transfers:
    """`numbers` of type `dtype` at a time, one way each."""

    def __init__(self, device: torch.device, numbers: int, dtype: torch.dtype) -> None:
        self._cuda = device.type == "cuda"
        self._down, self._up = (
            [torch.empty(numbers, dtype=dtype, pin_memory=self._cuda) for _ in range(2)]
            for _ in range(2)
        )
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._downs = self._ups = 0

    def fetch(self, flat: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begins to copy from the device; what it returns waits for them, on the CPU. They are
        there until the fetch after the next."""
        buffer = self._down[self._downs % 2]
        self._downs += 1
        parts = list(buffer[: sum(map(len, flat))].split([len(values) for values in flat]))
        for part, values in zip(parts, flat, strict=True):
            part.copy_(values, non_blocking=True)
        event = self._event()

        def there() -> list[Tensor]:
            if event is not None:
                event.synchronize()
            return parts

        return there

    def send(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Begins to copy (to on the device, from on the CPU), rounded to `dtype` on the way."""
        turn = self._ups % 2
        self._ups += 1
        if (before := self._sent[turn]) is not None:
            before.synchronize()
        at = 0
        for to, values in pairs:
            part = self._up[turn][at : at + len(values)]
            part.copy_(values)
            to.copy_(part, non_blocking=True)
            at += len(values)
        self._sent[turn] = self._event()

    def _event(self) -> torch.cuda.Event | None:
        if not self._cuda:
            return None
        event = torch.cuda.Event()
        event.record()
        return event
