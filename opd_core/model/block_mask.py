"""FlexAttention over prefix trees: its block mask, made of the trees themselves.

`create_block_mask` asks `sees` for all N x N pairs, by a function that has to be compiled. A tree
answers for a whole block: row i sees row j where j <= i < ends[j] (`Pack.last_descendants`), so the
first and last row of a block and the smallest and largest end say it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd_core.model.prefix_tree import Pack

BLOCK = 128
FLEX_KERNEL = {"FORCE_USE_FLEX_ATTENTION": True}
"""One kernel for all packs: by itself torch takes another one below 128 rows."""


def tree_block_mask(pack: Pack, device: torch.device | str) -> Any:
    """The BlockMask of a pack: which 128 x 128 blocks have nothing, all, or something to see."""
    from torch.nn.attention.flex_attention import BlockMask

    ends = pack.last_descendants()
    ends_N = torch.from_numpy(ends).to(device)

    def sees(_b: Tensor, _h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) & (row < ends_N[column])

    partial, full = blocks_seen(ends)
    counts = [torch.from_numpy(a).to(device) for kind in (partial, full) for a in _listed(kind)]
    return BlockMask.from_kv_blocks(
        *counts, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(len(ends), len(ends))
    )


def blocks_seen(ends_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(in part, as a whole): [rows' blocks, columns' blocks] bool each."""
    tokens = len(ends_N)
    count = -(-tokens // BLOCK)
    first = np.arange(count) * BLOCK
    last = np.minimum(first + BLOCK, tokens) - 1
    padded = np.pad(ends_N, (0, count * BLOCK - tokens), mode="edge").reshape(count, BLOCK)
    smallest, largest = padded.min(axis=1), padded.max(axis=1)
    before = first[None] < first[:, None]
    # A block before this one: its row with the largest end is seen by our first row, or by none.
    some = (before & (largest[None] > first[:, None])) | np.eye(count, dtype=bool)
    whole = before & (smallest[None] > last[:, None])
    whole[-1] &= tokens % BLOCK == 0  # rows that are not there see nothing
    return some & ~whole, whole


def _listed(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how many [1, 1, rows], which first [1, 1, rows, columns]) as FlexAttention wants them."""
    counts = seen.sum(axis=1).astype(np.int32)
    order = np.argsort(~seen, axis=1, kind="stable").astype(np.int32)
    return counts[None, None], order[None, None]


def flex(device: torch.device) -> Callable[..., Tensor]:
    """`flex_attention`; on CUDA compiled, once for all sizes."""
    from torch.nn.attention.flex_attention import flex_attention

    return _compiled() if device.type == "cuda" else flex_attention


@functools.lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
