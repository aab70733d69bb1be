"""Attention over prefix trees, as an attention implementation of transformers.

The models call `attend` through transformers' own attention interface; what to do is in the
`tree_layout` that travels through the forward's keyword arguments. The layouts:

- `PackedAttention`: a packed sequence of trees. Each tree's root runs causally by itself (no mask,
  no wasted half), then its branches run against the root's and their own keys and values.
  Differentiable. Nothing of size N x N exists: the largest mask is branch block x its tree.
- `CudaPackedAttention` (`cuda_attention.py`): the same by kernels of CUDA.
- `DecodeAttention`: one new token a row; the rows of one prompt share its keys and values.

Shape suffixes: B rows, H heads, N packed tokens, D head size, P prompts, G rows a prompt,
L prompt length, T new tokens so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opd_core import torchvision_guard
from opd_core.model.prefix_tree import Pack

NAME = "prefix_tree"
DENSE_TREE_TOKENS = 320
"""A tree up to this size is one masked block: two kernel calls would cost more than they save."""
BLOCK_TOKENS = 256
"""Branches are run in blocks of about this many query tokens."""


class TreeLayout(Protocol):
    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor: ...


class KeepingLayout(TreeLayout, Protocol):
    kept: dict[int, tuple[Tensor, Tensor]] | None
    """Keys and values of every layer, where they were to be kept."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    tree_layout: TreeLayout | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The function that transformers calls: query [B, H, n, D] -> output [B, n, H, D]."""
    if tree_layout is None:
        raise ValueError("a model set up for prefix trees was run without a tree_layout")
    output = tree_layout.attend(module.layer_idx, query, key, value, scaling)  # type: ignore[arg-type]
    return output.transpose(1, 2), None


def register() -> None:
    """Make `NAME` known to transformers as an attention implementation."""
    torchvision_guard.install()
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


@dataclass(frozen=True, slots=True)
class _Block:
    """Query rows [start, stop) see keys of `context` rows and of their own rows."""

    start: int
    stop: int
    context: tuple[int, int] | None
    mask: Tensor | None
    """[stop - start, context + stop - start] bool, or None: causal."""


class PackedAttention:
    """Attention of a `Pack`; with `keep=True` the keys and values of every layer are kept."""

    def __init__(self, pack: Pack, device: torch.device | str, keep: bool = False) -> None:
        ends_N = torch.from_numpy(pack.last_descendants()).to(device)
        self._blocks = [b for t in range(len(pack.trees)) for b in _tree_blocks(pack, t, ends_N)]
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if keep else None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        if self.kept is not None:
            self.kept[layer] = (key, value)
        key, value = _repeat_heads(key, query), _repeat_heads(value, query)
        outputs = []
        for block in self._blocks:
            outputs.append(
                F.scaled_dot_product_attention(
                    query[:, :, block.start : block.stop],
                    _with_context(key, block),
                    _with_context(value, block),
                    attn_mask=block.mask,
                    is_causal=block.mask is None,
                    scale=scaling,
                )
            )
        return torch.cat(outputs, dim=2)


def packed_attention(pack: Pack, device: torch.device, keep: bool = False) -> KeepingLayout:
    """The attention that fits the machine."""
    if device.type == "cuda":
        from opd_core.model.cuda_attention import CudaPackedAttention

        return CudaPackedAttention(pack, device, keep)
    return PackedAttention(pack, device, keep)


def _tree_blocks(pack: Pack, t: int, ends_N: Tensor) -> list[_Block]:
    tree = pack.trees[t]
    first, root_end = pack.starts[t][0], pack.rows(t, 0).stop
    end = first + tree.tokens
    if root_end == end:
        return [_Block(first, end, None, None)]
    if tree.tokens <= DENSE_TREE_TOKENS:
        return [_Block(first, end, None, _mask(ends_N, first, end, None))]
    root = (first, root_end)
    blocks = [_Block(first, root_end, None, None)]
    cuts = [pack.starts[t][s] for s, seg in enumerate(tree.segments) if seg.parent == 0] + [end]
    start = cuts[0]
    for cut, following in zip(cuts[1:], [*cuts[2:], None], strict=True):
        if following is None or following - start > BLOCK_TOKENS:
            blocks.append(_Block(start, cut, root, _mask(ends_N, start, cut, root)))
            start = cut
    return blocks


def _mask(ends_N: Tensor, start: int, stop: int, context: tuple[int, int] | None) -> Tensor:
    """[stop - start, context + stop - start]: what the rows of a block see (`last_descendants`)."""
    rows = torch.arange(start, stop, device=ends_N.device)
    columns = rows
    if context is not None:
        columns = torch.cat((torch.arange(*context, device=ends_N.device), rows))
    return (columns[None] <= rows[:, None]) & (rows[:, None] < ends_N[columns][None])


def _with_context(x: Tensor, block: _Block) -> Tensor:
    own = x[:, :, block.start : block.stop]
    if block.context is None:
        return own
    return torch.cat((x[:, :, block.context[0] : block.context[1]], own), dim=2)


def _repeat_heads(x: Tensor, query: Tensor) -> Tensor:
    groups = query.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


class DecodeAttention:
    """One new token for each of P x G rows; prompts are padded to the longest of the P.

    `prefix[layer]` holds keys and values [P, H, L, D]; `lengths_P` the true lengths.
    """

    def __init__(
        self, prefix: dict[int, tuple[Tensor, Tensor]], lengths_P: Tensor, group: int
    ) -> None:
        self._prefix = prefix
        self._group = group
        longest = next(iter(prefix.values()))[0].shape[2]
        device = lengths_P.device
        padding_PL = torch.arange(longest, device=device)[None] >= lengths_P[:, None]
        self._padding = padding_PL[:, None, None, :] if bool(padding_PL.any()) else None
        self._own: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        if layer in self._own:
            old_key, old_value = self._own[layer]
            key = torch.cat((old_key, key), dim=2)
            value = torch.cat((old_value, value), dim=2)
        self._own[layer] = (key, value)
        rows, heads, _, size = query.shape
        prefix_key_PKLD, prefix_value_PKLD = self._prefix[layer]
        kinds = key.shape[1]
        # R query heads share each of the K heads of keys and values: they stand beside the rows.
        query_PKQD = query.view(-1, self._group, kinds, heads // kinds, size).transpose(1, 2)
        query_PKQD = query_PKQD.flatten(2, 3)
        prefix_scores = query_PKQD @ prefix_key_PKLD.transpose(2, 3)
        if self._padding is not None:
            prefix_scores = prefix_scores.masked_fill(self._padding, float("-inf"))
        longest = prefix_scores.shape[-1]
        prefix_scores_BHL = self._by_row(prefix_scores, heads)
        own_scores_BHT = (
            (key @ query.view(rows, kinds, -1, size).transpose(2, 3))
            .transpose(2, 3)
            .reshape(rows, heads, -1)
        )
        scores = torch.cat((prefix_scores_BHL, own_scores_BHT), dim=2).float() * scaling
        weights = scores.softmax(dim=2).to(value.dtype)
        weights_PKQL = weights[:, :, :longest].view(-1, self._group, kinds, heads // kinds, longest)
        weights_PKQL = weights_PKQL.transpose(1, 2).flatten(2, 3)
        prefix_out = self._by_row(weights_PKQL @ prefix_value_PKLD, heads)
        own_weights = weights[:, :, longest:].reshape(rows, kinds, heads // kinds, -1)
        own_out = (own_weights @ value).reshape(rows, heads, size)
        return (prefix_out + own_out)[:, :, None]

    def _by_row(self, x_PKQE: Tensor, heads: int) -> Tensor:
        """[P, K, G * R, E] -> [B, H, E]"""
        kinds = x_PKQE.shape[1]
        x_PGKRE = x_PKQE.unflatten(2, (self._group, heads // kinds)).transpose(1, 2)
        x_BHE: Tensor = x_PGKRE.reshape(-1, heads, x_PKQE.shape[-1])
        return x_BHE

    def keep(self, prompts: Tensor, rows: Tensor, group: int) -> None:
        """Drop all but these prompts [P'] and rows [P' * group] (indices into the present ones)."""
        # One layer after the other: all of them at once would be there twice.
        for layer, (k, v) in self._prefix.items():
            self._prefix[layer] = (k[prompts], v[prompts])
        for layer, (k, v) in self._own.items():
            self._own[layer] = (k[rows], v[rows])
        if self._padding is not None:
            self._padding = self._padding[prompts]
        self._group = group
