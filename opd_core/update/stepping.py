"""One step of the optimiser: gradients clipped, weights moved, wherever they lie (`in_memory.py`).

The optimiser itself always sees float32 weights and gradients. Where the trained weights are
float32 on the device it works on them in place. Elsewhere they are brought to it in pieces of a
bounded size, so that a step needs little memory beside what lies there anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from opd_core.update.in_memory import InMemory
from opd_core.update.optimizers import as_written, make_optimizer, set_rate
from opd_core.update.rounding import round_at_random

if TYPE_CHECKING:
    from opd_core.config.sections import UpdateSection

PIECE = 1 << 26
"""Numbers that are stepped together: 256 MiB in float32."""


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
        """Go on from these weights, by name, float32."""


def stepping(
    settings: UpdateSection,
    memory: InMemory,
    trained: Mapping[str, nn.Parameter],
    kept: Mapping[str, Tensor],
) -> Stepping:
    """What moves the weights `trained`; `kept` are those in float32, where they lie elsewhere."""
    if memory.float32_weights and not memory.on_the_cpu:
        return InPlace(settings, trained)
    return InPieces(settings, memory, trained, kept)


class InPlace:
    """Float32 weights on the device."""

    def __init__(self, settings: UpdateSection, trained: Mapping[str, nn.Parameter]) -> None:
        self._settings, self._trained = settings, trained
        self.optimizer = make_optimizer(settings, trained.values())
        self.shapes = [weight.shape for weight in trained.values()]

    def clip(self, largest: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self._trained.values(), largest)

    def step(self, rate: float, seed: int) -> None:
        set_rate(self.optimizer, rate)
        device = next(iter(self._trained.values())).device
        with as_written(self._settings, device):
            self.optimizer.step()

    def float32_weights(self) -> Mapping[str, Tensor]:
        return {name: weight.detach() for name, weight in self._trained.items()}

    @torch.no_grad()
    def take_over(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self._trained.items():
            weight.copy_(weights[name])


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a trained weight, flat."""

    weight: nn.Parameter
    begin: int
    end: int
    float32: nn.Parameter
    """What the optimiser moves. Empty between two steps where no float32 weights are kept."""

    def values(self) -> Tensor:
        return self.weight.detach().view(-1)[self.begin : self.end]

    def gradient(self) -> Tensor:
        assert self.weight.grad is not None
        return self.weight.grad.reshape(-1)[self.begin : self.end]


class InPieces:
    """Weights of a coarser type on the device: rounded at random after each step, or copies of the
    float32 weights in the memory of the CPU."""

    def __init__(
        self,
        settings: UpdateSection,
        memory: InMemory,
        trained: Mapping[str, nn.Parameter],
        kept: Mapping[str, Tensor],
        piece: int = PIECE,
    ) -> None:
        self._settings, self._memory, self._trained = settings, memory, trained
        self._device = next(iter(trained.values())).device
        self._place = torch.device("cpu") if memory.on_the_cpu else self._device
        self._whole = kept
        self._pieces = [p for name in trained for p in self._cut(name, piece)]
        self.shapes = [torch.Size([p.end - p.begin]) for p in self._pieces]
        self._together = list(_together(self._pieces, piece))
        self._scale: Tensor | None = None
        self.optimizer = make_optimizer(
            settings, [p.float32 for p in self._pieces], fused=memory.on_the_cpu or None
        )

    def _cut(self, name: str, piece: int) -> Iterator[_Piece]:
        weight = self._trained[name]
        for begin in range(0, weight.numel(), piece):
            end = min(begin + piece, weight.numel())
            float32 = torch.empty(0, device=self._place)
            if self._memory.float32_weights:
                float32 = self._whole[name].view(-1)[begin:end]
            yield _Piece(weight, begin, end, nn.Parameter(float32))

    def clip(self, largest: float) -> Tensor:
        gradients = [w.grad for w in self._trained.values() if w.grad is not None]
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        self._scale = (largest / (norm + 1e-6)).clamp(max=1.0)  # as torch's own clip_grad_norm_
        return norm

    @torch.no_grad()
    def step(self, rate: float, seed: int) -> None:
        set_rate(self.optimizer, rate)
        generator = torch.Generator(self._device).manual_seed(seed)
        assert self._scale is not None, "clip comes first"
        for pieces in self._together:
            moving = [p for p in pieces if p.weight.grad is not None]
            for p in moving:
                if not self._memory.float32_weights:
                    p.float32.data = p.values().float()
                p.float32.grad = (p.gradient().float() * self._scale).to(self._place)
            with as_written(self._settings, self._place):
                self.optimizer.step()
            for p in moving:
                p.float32.grad = None
                if self._memory.float32_weights:
                    p.values().copy_(p.float32)
                else:
                    p.values().copy_(round_at_random(p.float32.data, generator))
                    p.float32.data = torch.empty(0, device=self._place)
        self._scale = None

    def float32_weights(self) -> Mapping[str, Tensor] | None:
        return self._whole if self._memory.float32_weights else None

    @torch.no_grad()
    def take_over(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self._trained.items():
            weight.copy_(weights[name])
            if self._memory.float32_weights:
                self._whole[name].copy_(weights[name])


def _together(pieces: Sequence[_Piece], most: int) -> Iterator[list[_Piece]]:
    """In order, so many at a time that they hold `most` numbers."""
    group: list[_Piece] = []
    numbers = 0
    for p in pieces:
        size = p.end - p.begin
        if group and numbers + size > most:
            yield group
            group, numbers = [], 0
        group.append(p)
        numbers += size
    if group:
        yield group
