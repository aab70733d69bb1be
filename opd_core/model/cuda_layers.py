"""Layers of transformers' models by kernels that CUDA has, each computing what the layer computes.

Nothing here is used on a CPU, where the layers stay as they are. What a profile showed of a model
as transformers runs it:

- `RMSNorm` is eight kernels, each over the whole of the hidden states; torch has it as one.
- Each frame's attention in the vision tower is a call of its own, 128 a layer for a long video, so
  that the device waits for Python. Frames of one size go together.
- The patch embedding is a `Conv3d` whose kernel is as large as its stride, which is a matrix
  product. As a convolution it is slow in bfloat16, and in float32 it is computed in TF32.

Shape suffixes: H heads, n rows, D head size, F frames.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAMES = "frames_as_by_flash"
"""Attention of the vision tower. transformers hands all frames to an implementation at once where
its name has "flash" in it, and to any other a frame at a time."""


def use_cuda_layers(model: nn.Module, vision_settings: Any) -> None:
    """Let the layers of `model`, which is on CUDA, run by these kernels."""
    from transformers import AttentionInterface

    AttentionInterface.register(FRAMES, attend_by_frame)
    vision_settings._attn_implementation = FRAMES
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = types.MethodType(rms_norm, module)
        elif isinstance(module, nn.Conv3d) and module.kernel_size == module.stride:
            module.forward = types.MethodType(conv_of_one_place, module)


def rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
    """`forward` of an RMSNorm: statistics in float32, the output as `hidden_states`."""
    return F.rms_norm(hidden_states, (hidden_states.shape[-1],), self.weight, self.variance_epsilon)


def conv_of_one_place(self: Any, patches: Tensor) -> Tensor:
    """`forward` of a `Conv3d` over inputs of its kernel's size: [n, C, t, y, x] -> [n, D, 1, 1, 1].

    A product of matrices follows `torch.backends.cuda.matmul`, which is exact in float32 unless
    somebody says otherwise; cuDNN's convolutions are TF32 unless somebody says otherwise.
    """
    if patches.shape[2:] != self.weight.shape[2:]:
        raise ValueError(f"patches {tuple(patches.shape[2:])} for {tuple(self.weight.shape[2:])}")
    output = F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
    return output[:, :, None, None, None]


def attend_by_frame(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention within frames: [1, H, n, D] -> [1, n, H, D]; frame i is rows [cu[i], cu[i + 1])."""
    outputs = []
    start = 0
    for count, rows in _runs(cu_seq_lens_q):
        stop = start + count * rows
        parts = (_frames(x[0, :, start:stop], count, rows) for x in (query, key, value))
        output_FHnD = F.scaled_dot_product_attention(*parts, scale=scaling)
        outputs.append(output_FHnD.transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(outputs)[None], None


def _frames(x_HnD: Tensor, count: int, rows: int) -> Tensor:
    return x_HnD.unflatten(1, (count, rows)).transpose(0, 1)


def _runs(ends: Tensor) -> list[tuple[int, int]]:
    """(frames, rows of each) for runs of neighbours of one size.

    Kept with the tensor, which all layers of a pass share: reading it waits for the device.
    """
    known: list[tuple[int, int]] | None = getattr(ends, "_runs_of_frames", None)
    if known is None:
        known = []
        for rows in ends.diff().tolist():
            if known and known[-1][1] == rows:
                known[-1] = (known[-1][0] + 1, rows)
            else:
                known.append((1, rows))
        ends._runs_of_frames = known  # type: ignore[attr-defined]
    return known
