"""The processes that hold one model together: this one alone, or the ranks of a group.

All of them take part in every call below, in the same order. Alone each gives back what it got.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

PATIENCE_SECONDS = 4 * 3600
"""Of ranks for the first one, while it writes what is of all: hundreds of GB, perhaps slowly. That
one has died is seen by whoever started them."""


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    """Of the devices over which weights are sharded; None: alone."""
    _objects: Any = None
    """The group through which objects go, in the memory of the CPU."""

    @classmethod
    def joined(cls, device: torch.device) -> Ranks:
        """Of the process group that is initialised already, each with a device of this kind."""
        from torch import distributed
        from torch.distributed.device_mesh import init_device_mesh

        size = distributed.get_world_size()
        mesh = init_device_mesh(device.type, (size,))
        objects = distributed.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_SECONDS))
        return cls(distributed.get_rank(), size, mesh, objects)

    @property
    def first(self) -> bool:
        """Whether this one writes what is of all."""
        return self.rank == 0

    def gathered(self, one: T) -> list[T]:
        """What each rank has, by rank. Tensors among it lie in the memory of the CPU."""
        if self.mesh is None:
            return [one]
        from torch import distributed

        every: list[Any] = [None] * self.size
        distributed.all_gather_object(every, one, group=self._objects)
        return every

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives here. What it raises on one rank is raised on all, and none waits."""
        try:
            done, fault = work(), None
        except VideoOPDError as error:
            fault = error
        for of_rank in self.gathered(fault):
            if of_rank is not None:
                raise of_rank if fault is None else fault
        return done

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` gives here. One after the other does it, so that what it takes for a moment
        is taken once on a machine."""
        for rank in range(self.size):
            if rank == self.rank:
                done = work()
            self.gathered(None)
        return done

    def of_first(self, one: T) -> T:
        """What the first rank has."""
        return self.gathered(one)[0]


ALONE = Ranks()


def dealt(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Which items each rank takes, as their numbers in ascending order: the largest first, each to
    the rank with the least so far. A rank has none where there are fewer items than ranks."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        shares[rank].append(item)
        loads[rank] += sizes[item]
    return [sorted(share) for share in shares]
