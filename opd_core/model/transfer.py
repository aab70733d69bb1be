"""From this machine's memory to the device, and work that is done before it is waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def to_device(
    tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """The tensor there, in `dtype`. To CUDA it goes from page-locked memory, and nobody waits."""
    device = torch.device(device)
    if device.type != "cuda":
        return tensor.to(device, dtype)
    return tensor.to(dtype).pin_memory().to(device, non_blocking=True)


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, the next of which is made by a thread while one is worked on."""
    end = object()
    source = iter(items)
    with ThreadPoolExecutor(1, "one-ahead") as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item  # type: ignore[misc]
