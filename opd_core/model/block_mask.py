"""FlexAttention over prefix trees: its block mask, made of the trees themselves.

`create_block_mask` asks about all pairs of rows, by a function that has to be compiled. A tree
answers for a whole block: row i sees row j where j <= i < ends[j] (`Pack.last_descendants`), so the
first and last row of a block and the smallest and largest end say it.

Shape suffixes: N packed tokens, R those of them that ask.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd_core.model.transfer import to_device

BLOCK = 128
FLEX_KERNEL = {"FORCE_USE_FLEX_ATTENTION": True}
"""One kernel for all packs: by itself torch takes another one below 128 rows."""
COMPILED_FORMS = 64
"""With and without gradients, and sizes that are multiples of 128: torch gives up after 8."""


def tree_block_mask(
    ends_N: np.ndarray, rows_R: np.ndarray | None, device: torch.device | str
) -> Any:
    """The BlockMask of rows (ascending; None: all) against all N: which 128 x 128 blocks have
    nothing, all, or perhaps something to see."""
    from torch.nn.attention.flex_attention import BlockMask

    asking_R = np.arange(len(ends_N)) if rows_R is None else rows_R
    ends, rows = (to_device(torch.from_numpy(a), device) for a in (ends_N, asking_R))

    def sees(_b: Tensor, _h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) & (row < ends[column])

    def rows_see(_b: Tensor, _h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= rows[row]) & (rows[row] < ends[column])

    partial, full = blocks_seen(ends_N, asking_R)
    counts, indices, full_counts, full_indices = (
        to_device(torch.from_numpy(a), device) for kind in (partial, full) for a in _listed(kind)
    )
    return BlockMask.from_kv_blocks(
        counts,
        indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=BLOCK,
        mask_mod=sees if rows_R is None else rows_see,
        seq_lengths=(len(asking_R), len(ends_N)),
    )


def blocks_seen(ends_N: np.ndarray, rows_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(perhaps in part, as a whole): [blocks of R, blocks of N] bool each. Of rows without a gap
    the first is exact."""
    ends = _blocks(ends_N)
    rows, columns = _blocks(rows_R), _blocks(np.arange(len(ends_N)))
    first, last = rows.min(axis=1)[:, None], rows.max(axis=1)[:, None]
    some = (columns.min(axis=1) <= last) & (ends.max(axis=1) > first)
    whole = (columns.max(axis=1) <= first) & (ends.min(axis=1) > last)
    # What is not there sees nothing and is not seen.
    whole[-1] &= len(rows_R) % BLOCK == 0
    whole[:, -1] &= len(ends_N) % BLOCK == 0
    return some & ~whole, whole


def _blocks(values: np.ndarray) -> np.ndarray:
    """[blocks, 128], the last value repeated."""
    return np.pad(values, (0, -len(values) % BLOCK), mode="edge").reshape(-1, BLOCK)


def _listed(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how many [1, 1, rows], which first [1, 1, rows, columns]) as FlexAttention wants them."""
    counts = seen.sum(axis=1).astype(np.int32)
    order = np.argsort(~seen, axis=1, kind="stable").astype(np.int32)
    return counts[None, None], order[None, None]


def flex(device: torch.device) -> Any:
    """`flex_attention`; on CUDA compiled, once for all sizes."""
    from torch.nn.attention.flex_attention import flex_attention

    return _compiled() if device.type == "cuda" else flex_attention


@functools.lru_cache(maxsize=1)
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, COMPILED_FORMS)
    # fullgraph: where torch will not compile, it says so instead of making N x N.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)
