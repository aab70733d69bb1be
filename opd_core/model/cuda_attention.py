"""Attention over prefix trees by kernels of CUDA; differentiable, nothing of size N x N.

Nearly all pairs of a tree are in its root, which runs causally by itself: what torch's
`scaled_dot_product_attention` has its fastest kernels for (cuDNN's on Hopper). All other rows, of
all trees, run by FlexAttention against everything before them. In float32 FlexAttention computes
all of it, because the fast kernels have no float32.

Shape suffixes: N packed tokens, R rows that are not of a causal run.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opd_core.model.block_mask import BLOCK, FLEX_KERNEL, flex, tree_block_mask
from opd_core.model.prefix_tree import Pack

RUN = 256
"""Causal runs are multiples of this long. cuDNN plans each new length, for 0.1 s; the rows of a
root that are left over are run with the branches."""
SHORTEST_RUN = 1024
"""Below this a kernel call of its own costs more than it saves."""


class CudaPackedAttention:
    """Attention of a `Pack`; with `keep=True` the keys and values of every layer are kept."""

    def __init__(self, pack: Pack, device: torch.device | str, keep: bool = False) -> None:
        self._ends_N = pack.last_descendants()
        self._device = torch.device(device)
        self._flex = flex(self._device)
        self._spans = causal_runs(pack)
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if keep else None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        if self.kept is not None:
            self.kept[layer] = (key, value)
        query, key, value = (_as_computed(x) for x in (query, key, value))
        if query.dtype == torch.float32 or all(not causal for _, _, causal in self._spans):
            return self._by_flex(query, key, value, self._mask, scaling)
        return self._by_runs(query, key, value, scaling)

    def _by_runs(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        # Pieces are joined with the heads inside, as the model goes on with them.
        outputs: list[Tensor | None] = []
        rest: list[Tensor] = []
        parts = query.split([stop - start for start, stop, _ in self._spans], dim=2)
        for (start, stop, causal), part in zip(self._spans, parts, strict=True):
            if not causal:
                rest.append(part)
                outputs.append(None)
                continue
            output = F.scaled_dot_product_attention(
                part,
                key[:, :, start:stop],
                value[:, :, start:stop],
                is_causal=True,
                scale=scaling,
                enable_gqa=True,
            )
            outputs.append(output.transpose(1, 2))
        if rest:
            others = self._by_flex(torch.cat(rest, dim=2), key, value, self._rest_mask, scaling)
            pieces = iter(others.transpose(1, 2).split([part.shape[2] for part in rest], dim=1))
            outputs = [next(pieces) if output is None else output for output in outputs]
        return torch.cat(outputs, dim=1).transpose(1, 2)  # type: ignore[arg-type]

    def _by_flex(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float
    ) -> Tensor:
        output: Tensor = self._flex(
            query,
            key,
            value,
            block_mask=mask,
            scale=scaling,
            enable_gqa=True,
            kernel_options=FLEX_KERNEL,
        )
        return output

    @functools.cached_property
    def _mask(self) -> Any:
        return tree_block_mask(self._ends_N, None, self._device)

    @functools.cached_property
    def _rest_mask(self) -> Any:
        rows_R = np.concatenate([np.arange(a, b) for a, b, causal in self._spans if not causal])
        return tree_block_mask(self._ends_N, rows_R, self._device)


def _as_computed(x: Tensor) -> Tensor:
    """In the precision of autocast, where it is on."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def causal_runs(
    pack: Pack, run: int = RUN, shortest: int = SHORTEST_RUN, others: int = BLOCK
) -> list[tuple[int, int, bool]]:
    """(first row, end, whether it is a causal run of a root): spans that cover the pack in order,
    no two neighbours of which are both no run.

    The other rows are none, or more than `others`: one block of the mask alone is a form of its
    own, for which everything would be compiled once more.
    """
    lengths = [len(pack.rows(t, 0)) // run * run for t in range(len(pack.trees))]
    lengths = [0 if length < shortest else length for length in lengths]
    if 0 < pack.tokens - sum(lengths) <= others:
        lengths[lengths.index(max(lengths))] -= -(-others // run) * run
    spans: list[tuple[int, int, bool]] = []
    at = 0
    for tree, length in enumerate(lengths):
        root = pack.rows(tree, 0)
        if length <= 0:
            continue
        if at < root.start:
            spans.append((at, root.start, False))
        at = root.start + length
        spans.append((root.start, at, True))
    if at < pack.tokens:
        spans.append((at, pack.tokens, False))
    return spans
