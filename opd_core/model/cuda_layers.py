"""Layers of transformers' models by kernels that CUDA has, each computing what the layer computes.

Nothing here is used on a CPU, where the layers stay as they are. What a profile showed of a model
as transformers runs it:

- `RMSNorm` is eight kernels, each over the whole of the hidden states; torch has it as one.
- Each frame's attention in the vision tower is a call of its own, 128 a layer for a long video, so
  that the device waits for Python. Frames of one size go together.
- The patch embedding is a `Conv3d` whose kernel is as large as its stride, which is a matrix
  product. As a convolution it is slow in bfloat16, and in float32 it is computed in TF32.
- Turning queries and keys to their positions is ten kernels, and a gate times its input two; each
  is compiled into one.

Shape suffixes: H heads, n rows, D head size, F frames.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotate = Callable[..., tuple[Tensor, Tensor]]
FRAMES = "frames_as_by_flash"
"""Attention of the vision tower. transformers hands all frames to an implementation at once where
its name has "flash" in it, and to any other a frame at a time."""
COMPILED_ROWS = 128
"""Fewer rows, as in decoding, go as they are: to find the compiled function costs more."""
SILU = ("SiLU", "SiLUActivation")
"""Classes of the activation in torch and in transformers."""
ROTATE = "apply_rotary_pos_emb"
"""What a family's module calls it, where positions are turned into one angle before."""


def use_cuda_layers(model: nn.Module, vision_settings: Any) -> None:
    """Let the layers of `model`, which is on CUDA, run by these kernels."""
    from transformers import AttentionInterface

    AttentionInterface.register(FRAMES, attend_by_frame)
    vision_settings._attn_implementation = FRAMES
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            _replace(module, rms_norm)
        elif isinstance(module, nn.Conv3d) and module.kernel_size == module.stride:
            _replace(module, conv_of_one_place)
        elif type(getattr(module, "act_fn", None)).__name__ in SILU and hasattr(module, "up_proj"):
            _replace(module, silu_mlp)
        elif hasattr(module, "q_norm"):
            family = sys.modules[type(module).__module__]
            setattr(family, ROTATE, rotation(getattr(family, ROTATE)))


def _replace(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    module.forward = types.MethodType(forward, module)


def rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
    """`forward` of an RMSNorm: statistics in float32, weight and output as `hidden_states`.

    Under autocast torch would give float32, and so queries and keys that the fast kernels do not
    take.
    """
    size, weight = hidden_states.shape[-1], self.weight.to(hidden_states.dtype)
    with torch.autocast(hidden_states.device.type, enabled=False):
        return F.rms_norm(hidden_states, (size,), weight, self.variance_epsilon)


def silu_mlp(self: Any, x: Tensor) -> Tensor:
    """`forward` of an MLP with a gate: [.., n, D] -> [.., n, D]."""
    gate, up = self.gate_proj(x), self.up_proj(x)
    output: Tensor = self.down_proj(_compiled(_gated)(gate, up) if _is_large(gate, -2)
                                    else _gated(gate, up))  # fmt: skip
    return output


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def rotation(plain: Rotate) -> Rotate:
    """`apply_rotary_pos_emb`, compiled for many rows: queries and keys [B, H, n, D] by cosines and
    sines [B, n, D] of their positions."""
    if hasattr(plain, "plain"):
        return plain

    @functools.wraps(plain)
    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if unsqueeze_dim != 1 or not _is_large(q, -2):
            return plain(q, k, cos, sin, unsqueeze_dim)
        turned: tuple[Tensor, Tensor] = _compiled(plain)(q, k, cos, sin)
        return turned

    rotate.plain = plain  # type: ignore[attr-defined]
    return rotate


def _is_large(x: Tensor, rows: int) -> bool:
    return x.is_cuda and x.shape[rows] >= COMPILED_ROWS


@functools.lru_cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled for one number of rows, and when a second one comes for all of them."""
    return torch.compile(function, fullgraph=True)


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
        q, k, v = (_frames(x[0, :, start:stop], count, rows) for x in (query, key, value))
        output_FHnD = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        outputs.append(output_FHnD.transpose(1, 2).flatten(0, 1))
        start = stop
    return torch.cat(outputs)[None], None


def _frames(x_HnD: Tensor, count: int, rows: int) -> Tensor:
    x_FHnD: Tensor = x_HnD.unflatten(1, (count, rows)).transpose(0, 1)
    return x_FHnD


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
