"""One step of the optimiser: gradients clipped, weights moved, wherever they lie (`in_memory.py`).

The optimiser itself always sees float32 weights and gradients. Where the trained weights are
float32 on the device it works on them in place. Elsewhere they are brought to it in pieces of a
bounded size, so that a step needs little memory beside what lies there anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from opd_core.model.sharding import cut_as, gathered
from opd_core.update.in_memory import InMemory
from opd_core.update.optimizers import as_written, make_optimizer, set_rate
from opd_core.update.pieces import Offloaded, Rounded

if TYPE_CHECKING:
    from opd_core.config.sections import UpdateSection


class Stepping(Protocol):
    """Moves the trained weights."""

    optimizer: torch.optim.Optimizer
    shapes: list[torch.Size]
    """Of what the optimiser moves, in its order."""

    def clip(self, largest: float) -> Tensor:
        """The norm of all gradients; the next `step` takes them scaled to `largest` at most."""

    def step(self, rate: float, seed: int) -> None:
        """Move every weight that has a gradient. `seed`: of what is rounded at random."""

    def float32_weights(self) -> Mapping[str, Tensor] | None:
        """Name -> trained weight; None where none are kept."""

    def take_over(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from these weights, by name, float32. One that was not trained before (a vision
        tower that was frozen) is as the policy's folder has it."""


def stepping(
    settings: UpdateSection,
    memory: InMemory,
    trained: Mapping[str, nn.Parameter],
    kept: Mapping[str, Tensor],
) -> Stepping:
    """What moves the weights `trained`; `kept` are those in float32, where they lie elsewhere."""
    if memory.on_the_cpu:
        return Offloaded(settings, trained, kept)
    return InPlace(settings, trained) if memory.float32_weights else Rounded(settings, trained)


class InPlace:
    """Float32 weights on the device."""

    def __init__(self, settings: UpdateSection, trained: Mapping[str, nn.Parameter]) -> None:
        self._settings, self._trained = settings, trained
        self.optimizer = make_optimizer(settings, trained.values())
        self.shapes = [weight.shape for weight in trained.values()]

    def clip(self, largest: float) -> Tensor:
        return gathered(nn.utils.clip_grad_norm_(self._trained.values(), largest))

    def step(self, rate: float, seed: int) -> None:
        set_rate(self.optimizer, rate)
        device = next(iter(self._trained.values())).device
        with as_written(self._settings, device):
            self.optimizer.step()

    def float32_weights(self) -> Mapping[str, Tensor]:
        return {name: weight.detach() for name, weight in self._trained.items()}

    @torch.no_grad()
    def take_over(self, weights: Mapping[str, Tensor]) -> None:
        for name in self._trained.keys() & weights.keys():
            self._trained[name].copy_(cut_as(weights[name], self._trained[name]))
