"""Attention of the vision tower with all frames of one size in one call; training only.

A frame pair sees itself alone, so transformers calls attention once for each: in the tiny world
that is thousands of calls a step, each over four patches, and most of the time of the first stage.
All frames there are of one size, so one call with a batch of frames gives the same.

Shape suffixes: F frame pairs, L patches of one, H heads, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@contextmanager
def frames_together(tower: Any) -> Iterator[None]:
    """Within it, the vision tower of a Qwen3-VL model wants frames of one size, and runs them as a
    batch. Raises `ValueError` at a forward pass over frames of several sizes."""
    attentions = [block.attn for block in tower.blocks]
    for attention in attentions:
        attention.forward = partial(_forward, attention)
    try:
        yield
    finally:
        for attention in attentions:
            del attention.forward


def _forward(
    attention: Any,
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    **_: object,
) -> Tensor:
    """In place of the forward pass of a vision attention of transformers."""
    patches, frames = len(hidden_states), len(cu_seqlens) - 1
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
    qkv = attention.qkv(hidden_states).view(patches, 3, attention.num_heads, -1)
    query, key, value = qkv.unbind(1)
    query, key = rotate(query, key, *position_embeddings)
    if not (cu_seqlens.diff() * frames == patches).all():
        raise ValueError(f"{patches} patches are not {frames} frames of one size")
    query_FHLD, key_FHLD, value_FHLD = (
        x.view(frames, patches // frames, *x.shape[1:]).transpose(1, 2) for x in (query, key, value)
    )
    output_FHLD = F.scaled_dot_product_attention(
        query_FHLD, key_FHLD, value_FHLD, scale=attention.scaling
    )
    output: Tensor = attention.proj(output_FHLD.transpose(1, 2).reshape(patches, -1))
    return output
