"""Trained weights that are not float32 where they lie, moved in pieces of a bounded size.

The optimiser moves float32 numbers: a piece of the weights at a time, rounded at random once it has
moved; or all weights in the memory of the CPU, of which the device has copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from opd_core.update.optimizers import as_written, make_optimizer, set_rate
from opd_core.update.rounding import round_at_random
from opd_core.update.transfers import Transfers

if TYPE_CHECKING:
    from opd_core.config.sections import UpdateSection

PIECE = 1 << 26
"""Numbers that are moved together: 256 MiB in float32."""
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a trained weight, flat."""

    weight: nn.Parameter
    begin: int
    end: int
    float32: nn.Parameter
    """What the optimiser moves; empty between two steps where no float32 weights are kept."""

    def values(self) -> Tensor:
        return self.weight.detach().view(-1)[self.begin : self.end]

    def gradient(self) -> Tensor:
        assert self.weight.grad is not None
        return self.weight.grad.reshape(-1)[self.begin : self.end]


class _InPieces:
    def __init__(
        self,
        settings: UpdateSection,
        trained: Mapping[str, nn.Parameter],
        float32: Mapping[str, Tensor] | None,
        piece: int,
    ) -> None:
        self._settings, self._trained, self._float32 = settings, trained, float32
        self._device = next(iter(trained.values())).device
        self._pieces = [p for name in trained for p in self._cut(name, piece)]
        self.shapes = [torch.Size([p.end - p.begin]) for p in self._pieces]
        self._groups = list(_groups(self._pieces, piece))
        self._scale: Tensor | None = None
        self.optimizer = make_optimizer(
            settings, [p.float32 for p in self._pieces], fused=None if float32 is None else True
        )

    def _cut(self, name: str, piece: int) -> Iterator[_Piece]:
        weight = self._trained[name]
        for begin in range(0, weight.numel(), piece):
            end = min(begin + piece, weight.numel())
            if self._float32 is None:
                float32 = torch.empty(0, device=self._device)
            else:
                float32 = self._float32[name].view(-1)[begin:end]
            yield _Piece(weight, begin, end, nn.Parameter(float32))

    def clip(self, largest: float) -> Tensor:
        """In float32, whatever the gradients are in: `step` scales them."""
        gradients = [w.grad for w in self._trained.values() if w.grad is not None]
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        self._scale = (largest / (norm + 1e-6)).clamp(max=1.0)  # as torch's own clip_grad_norm_
        return norm

    def _moving(self) -> Iterator[list[_Piece]]:
        """The pieces that have a gradient, group by group."""
        for group in self._groups:
            if moving := [p for p in group if p.weight.grad is not None]:
                yield moving

    def float32_weights(self) -> Mapping[str, Tensor] | None:
        return self._float32

    @torch.no_grad()
    def take_over(self, weights: Mapping[str, Tensor]) -> None:
        for name in self._trained.keys() & weights.keys():
            self._trained[name].copy_(weights[name])
            if self._float32 is not None:
                self._float32[name].copy_(weights[name])


class Rounded(_InPieces):
    """Weights in bfloat16 alone, rounded at random after each step."""

    def __init__(
        self, settings: UpdateSection, trained: Mapping[str, nn.Parameter], piece: int = PIECE
    ) -> None:
        super().__init__(settings, trained, None, piece)

    @torch.no_grad()
    def step(self, rate: float, seed: int) -> None:
        assert self._scale is not None, "clip comes first"
        set_rate(self.optimizer, rate)
        generator = torch.Generator(self._device).manual_seed(seed)
        for pieces in self._moving():
            for p in pieces:
                p.float32.data = p.values().float()
                p.float32.grad = p.gradient().float() * self._scale
            with as_written(self._settings, self._device):
                self.optimizer.step()
            for p in pieces:
                p.values().copy_(round_at_random(p.float32.data, generator))
                p.float32.data, p.float32.grad = torch.empty(0, device=self._device), None


class Offloaded(_InPieces):
    """Float32 weights and moments in the memory of the CPU, where the step is computed; `kept` are
    those weights. The next gradients come while the ones before them are used."""

    def __init__(
        self,
        settings: UpdateSection,
        trained: Mapping[str, nn.Parameter],
        kept: Mapping[str, Tensor],
        piece: int = PIECE,
    ) -> None:
        super().__init__(settings, trained, kept, piece)
        largest = max(sum(p.end - p.begin for p in group) for group in self._groups)
        self._transfers = Transfers(self._device, largest, next(iter(trained.values())).dtype)

    @torch.no_grad()
    def step(self, rate: float, seed: int) -> None:
        assert self._scale is not None, "clip comes first"
        set_rate(self.optimizer, rate)
        scale = self._scale.cpu()
        for pieces, gradients in _ahead(list(self._moving()), self._fetch):
            for p, gradient in zip(pieces, gradients(), strict=True):
                p.float32.grad = gradient.float() * scale
            with as_written(self._settings, CPU):
                self.optimizer.step()
            for p in pieces:
                p.float32.grad = None
            self._transfers.send([(p.values(), p.float32.detach()) for p in pieces])

    def _fetch(self, pieces: Sequence[_Piece]) -> Callable[[], list[Tensor]]:
        return self._transfers.fetch([p.gradient() for p in pieces])


def _ahead(
    groups: Sequence[list[_Piece]], fetch: Callable[[list[_Piece]], Callable[[], list[Tensor]]]
) -> Iterator[tuple[list[_Piece], Callable[[], list[Tensor]]]]:
    """Each group with its gradients, those of the next one under way."""
    following = fetch(groups[0]) if groups else None
    for number, group in enumerate(groups, start=1):
        assert following is not None
        now, following = following, fetch(groups[number]) if number < len(groups) else None
        yield group, now


def _groups(pieces: Sequence[_Piece], most: int) -> Iterator[list[_Piece]]:
    """In order, as many at a time as hold `most` numbers."""
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
