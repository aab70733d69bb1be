"""Two processes of a group on this machine (gloo, CPU), warm for all tests of a module."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


class GlooRanks:
    """`ranks(function, *arguments)` is what `function(*arguments)` gives, by rank."""

    def __init__(self, size: int, meeting: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pools = [
            ProcessPoolExecutor(1, context, initializer=_join, initargs=(rank, size, meeting))
            for rank in range(size)
        ]

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        futures = [pool.submit(function, *arguments) for pool in self._pools]
        return [future.result(timeout=120) for future in futures]

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown()


def _join(rank: int, size: int, meeting: Path) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
    )
