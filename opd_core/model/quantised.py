"""A frozen model whose language model's linear layers lie in 8 or 4 bits a weight.

    fp8    e4m3 with a scale a row (an output feature): weight = scale * e4m3. Where the hardware
           multiplies e4m3 (CUDA from compute capability 8.9, in bfloat16), activations are rounded
           to it too, with a scale a token; elsewhere the weights alone are, and multiplied in the
           precision of what comes in.
    int4   groups of 128 weights of a row (or what divides the row), each 16 levels from the
           smallest to the largest: weight = low + scale * level. Multiplied likewise.

lm_head, embeddings, norms and the vision tower stay as they were loaded. lm_head: an error there is
one of the log-probs themselves, with nothing after it to damp it, and kept hidden states are
multiplied with the head of the checkpoint's files later (`lm_head.py`). Embeddings are looked up,
norms have hardly a weight. The vision tower is 2 % of a 32B teacher, and in the prefix of every
token.

A module of our own: torchao 0.18 rounds activations to FP8 on CUDA alone, where tests, audits and
benches on a CPU could not follow, and has no int4 for a CPU.

Shape suffixes: N tokens, O outputs and I inputs of a layer, G groups of a row, S weights of one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opd_core.extensions import Quantise
from opd_core.model.architectures import architecture_of

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
GROUP = 128
LEVELS = 16
HAS_FP8 = (8, 9)
"""The CUDA compute capability from which e4m3 is multiplied."""


def quantise(
    model: nn.Module,
    how: Quantise,
    device: torch.device | str = "cpu",
    activations: bool | None = None,
) -> None:
    """Replace the linear layers of a model's language model, one after the other, each on `device`.

    `activations`: whether fp8 rounds them too; None: where the hardware has it. Raises
    `VideoOPDError` for a mixture of experts, whose weights are in no linear layers.
    """
    if how == "none":
        return
    family = architecture_of(model.config)
    family.refuse_quantise(how)
    # Names, not modules: no layer may be kept once it is replaced.
    names = [
        name
        for name, module in model.named_modules()
        # An adapter's own matrices are small, and were trained beside the weights as they were.
        if isinstance(module, nn.Linear) and family.is_text(name) and ".lora_" not in name
    ]
    for name in names:
        layer = model.get_submodule(name).to(device)
        assert isinstance(layer, nn.Linear)
        weight_OI, bias_O = (
            layer.weight.detach(),
            None if layer.bias is None else layer.bias.detach(),
        )
        smaller: nn.Module
        if how == "fp8":
            rounds = rounds_activations(weight_OI) if activations is None else activations
            smaller = Float8Linear(weight_OI, bias_O, rounds)
        else:
            smaller = Int4Linear(weight_OI, bias_O)
        model.set_submodule(name, smaller)


def rounds_activations(weight: Tensor) -> bool:
    """Whether fp8 rounds activations too, of a model with weights like this one."""
    return (
        weight.is_cuda
        and weight.dtype is torch.bfloat16
        and torch.cuda.get_device_capability(weight.device) >= HAS_FP8
    )


def described(how: Quantise, device: torch.device, dtype: str) -> str:
    """What a score's `scorer` says of it beside its name."""
    if how == "int4":
        return f"groups of {GROUP}"
    rounds = rounds_activations(torch.empty(0, device=device, dtype=getattr(torch, dtype)))
    return "e4m3 a row, activations a token" if rounds else "e4m3 a row"


def weight_bytes(model: nn.Module) -> int:
    """Bytes of everything that a model keeps, each tensor once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


class Float8Linear(nn.Module):
    """`nn.Linear` with e4m3 weights."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, activations: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.activations = activations
        """Whether what comes in is rounded too."""
        weight_OI, scale_O1 = rounded_rows(weight_OI)
        self.register_buffer("weight", weight_OI)
        self.register_buffer("scale", scale_O1)
        self.register_buffer("bias", bias_O)
        # The kernel's strides: sixteen numbers at once.
        self._fits = self.in_features % 16 == 0 == self.out_features % 16

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        if not (self.activations and self._fits):
            weight_OI = (self.weight.float() * self.scale).to(input.dtype)
            return F.linear(input, weight_OI, self.bias)
        input_NI, scale_N1 = rounded_rows(input.reshape(-1, self.in_features))
        output_NO: Tensor = torch._scaled_mm(
            input_NI,
            self.weight.t(),
            scale_a=scale_N1,
            scale_b=self.scale.t(),
            out_dtype=input.dtype,
        )
        if self.bias is not None:
            output_NO = output_NO + self.bias
        return output_NO.reshape(*input.shape[:-1], self.out_features)


class Int4Linear(nn.Module):
    """`nn.Linear` with weights of 16 levels a group, two in a byte."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        levels_OGS, scale_OG1, low_OG1 = levels(weight_OI)
        packed = levels_OGS.reshape(self.out_features, -1, 2)
        self.register_buffer("weight", packed[..., 0] | packed[..., 1] << 4)
        self.register_buffer("scale", scale_OG1)
        self.register_buffer("low", low_OG1)
        self.register_buffer("bias", bias_O)

    weight: Tensor
    scale: Tensor
    low: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        pairs = torch.stack((self.weight & 15, self.weight >> 4), dim=-1)
        levels_OGS = pairs.reshape(*self.scale.shape[:2], -1).to(self.scale.dtype)
        weight_OGS = torch.addcmul(self.low, levels_OGS, self.scale)
        weight_OI = weight_OGS.reshape(self.out_features, self.in_features)
        return F.linear(input, weight_OI.to(input.dtype), self.bias)


def rounded_rows(rows_NI: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 [N, I], scales [N, 1] in float32) of rows; the largest of a row is e4m3's largest."""
    rows_NI = rows_NI.float()
    # A row of zeros has no scale of its own: with any it stays zeros.
    scale_N1 = rows_NI.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
    # Beyond its largest number e4m3 has only NaN; a quotient may be rounded to beyond.
    return (rows_NI / scale_N1).clamp(-LARGEST, LARGEST).to(FP8), scale_N1


def levels(weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(levels 0 to 15 [O, G, S], scales [O, G, 1], lowest values [O, G, 1]) of a weight; the latter
    two in its precision, and the levels as these rounded ones want them."""
    rows, width = weight_OI.shape
    weight_OGS = weight_OI.reshape(rows, -1, math.gcd(GROUP, width)).float()
    low_OG1, high_OG1 = weight_OGS.aminmax(dim=2, keepdim=True)
    scale_OG1 = ((high_OG1 - low_OG1) / (LEVELS - 1)).clamp(min=1e-12).to(weight_OI.dtype)
    low_OG1 = low_OG1.to(weight_OI.dtype)
    levels_OGS = ((weight_OGS - low_OG1.float()) / scale_OG1.float()).round()
    return levels_OGS.clamp(0, LEVELS - 1).to(torch.uint8), scale_OG1, low_OG1
