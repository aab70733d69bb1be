"""Quantised layers against formulas of their own, and what of a model is quantised."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from opd_core.extensions import Quantise
from opd_core.model import quantised
from opd_core.model.architectures import QWEN3_VL, QWEN3_VL_MOE
from opd_core.model.quantised import Float8Linear, Int4Linear, levels, rounded_rows, weight_bytes
from opd_core.model.tree_model import load_model
from opd_core.types import VideoOPDError
from tests.opd_core.engines.vllm_fixtures import make_model

TEACHER = Path(__file__).resolve().parents[3] / "configs" / "tiny" / "teacher"


def layer(rows: int = 48, width: int = 64, seed: int = 0, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(width, rows, bias=bias)
    with torch.no_grad():
        made.weight[3] *= 40  # an outlier costs its own row alone
        made.weight[5] = 0
    return made


def nearest_e4m3(values: torch.Tensor) -> torch.Tensor:
    """By looking at all of its numbers; ties to the even code, as in IEEE 754."""
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes.view(torch.float8_e4m3fn).double()
    possible = ~numbers.isnan()
    numbers, codes = numbers[possible], codes[possible]
    distance = (values.double()[..., None] - numbers).abs()
    # The smaller a penalty, the better: it decides nothing but ties.
    return numbers[(distance + 1e-12 * (codes % 2)).argmin(dim=-1)]


def test_rows_are_rounded_to_the_nearest_number_of_e4m3() -> None:
    weight = layer().weight.detach()
    rounded, scale = rounded_rows(weight)
    assert rounded.dtype is torch.float8_e4m3fn and scale.shape == (48, 1)
    for row in range(48):
        largest = weight[row].abs().max()
        if row == 5:
            assert not rounded[row].float().any()
            continue
        torch.testing.assert_close(scale[row, 0], largest / 448)
        assert rounded[row].float().abs().max() == 448, "the largest is kept as it is"
        expected = nearest_e4m3(weight[row] / scale[row])
        assert torch.equal(rounded[row].double(), expected)
    cast = (weight / scale).to(torch.float8_e4m3fn)
    assert torch.equal(rounded.view(torch.uint8), cast.view(torch.uint8))


def test_fp8_multiplies_what_was_rounded() -> None:
    whole = layer()
    small = Float8Linear(whole.weight.detach(), whole.bias.detach(), activations=False)
    inputs = torch.randn(2, 5, 64)
    weight = small.weight.double() * small.scale.double()
    expected = inputs.double() @ weight.T + whole.bias.double()
    torch.testing.assert_close(small(inputs).double(), expected, rtol=1e-5, atol=1e-4)
    off = (small(inputs) - whole(inputs)).norm() / whole(inputs).norm()
    assert 0.005 < off < 0.04, "a relative 2^-4 at most, on average less"


@pytest.mark.parametrize("shape", [(48, 64), (24, 20)])
def test_fp8_rounds_activations_where_it_is_told_to(shape: tuple[int, int]) -> None:
    """20 inputs are none that the kernel takes: there the weights alone are rounded."""
    whole = layer(*shape)
    small = Float8Linear(whole.weight.detach(), whole.bias.detach(), activations=True)
    inputs = torch.randn(2, 5, shape[1])
    inputs[1, 2] *= 1000  # a token has its own scale
    seen = inputs.double()
    if shape == (48, 64):
        scale = inputs.abs().amax(dim=-1, keepdim=True).double() / 448
        seen = nearest_e4m3(seen / scale) * scale
    weight = small.weight.double() * small.scale.double()
    expected = seen @ weight.T + whole.bias.double()
    difference = (small(inputs).double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert difference.max() < 1e-3, "a number in the middle of two may go either way"


@pytest.mark.parametrize(("width", "group"), [(256, 128), (64, 64), (96, 32), (160, 32)])
def test_int4_has_sixteen_levels_a_group(width: int, group: int) -> None:
    whole = layer(24, width)
    found, scales, lows = levels(whole.weight.detach())
    assert math.prod(found.shape) == 24 * width and found.shape[2] == group
    weight = whole.weight.detach().numpy().reshape(24, -1, group)
    expected = torch.empty(24, width // group, group)
    for row in range(24):
        for part in range(width // group):
            numbers = [float(x) for x in weight[row, part]]
            step = (max(numbers) - min(numbers)) / 15 or 1e-12
            for place, number in enumerate(numbers):
                level = round((number - min(numbers)) / step)
                expected[row, part, place] = min(numbers) + level * step
    restored = found.float() * scales + lows
    # A number in the middle of two levels may go either way.
    off = (restored - expected).abs() / scales.clamp(min=1e-9)
    assert (off > 1e-3).float().mean() < 0.001 and off.max() < 1.001
    assert ((restored - torch.from_numpy(weight)).abs() <= scales / 2 * 1.001).all()
    small = Int4Linear(whole.weight.detach(), whole.bias.detach())
    assert small.weight.shape == (24, width // 2) and small.weight.dtype is torch.uint8
    inputs = torch.randn(5, width)
    answer = inputs @ restored.reshape(24, width).T + whole.bias.detach()
    torch.testing.assert_close(small(inputs), answer, rtol=1e-4, atol=1e-4)


def test_int4_in_bfloat16_rounds_to_the_levels_that_are_kept() -> None:
    """Scale and lowest value are bfloat16, and the level nearest with them is taken."""
    weight = layer(24, 128).weight.detach().bfloat16()
    found, scales, lows = levels(weight)
    assert scales.dtype is lows.dtype is torch.bfloat16
    every = torch.arange(16.0)[:, None, None, None] * scales.float() + lows.float()
    distance = (every - weight.float().reshape(24, -1, 128)).abs()
    nearest = distance.gather(0, found.long()[None])[0]
    assert torch.equal(nearest, distance.amin(dim=0))


def layers_of(model: nn.Module) -> dict[str, type]:
    return {n: type(m) for n, m in model.named_modules() if not list(m.children())}


@pytest.mark.parametrize(("how", "kind"), [("fp8", Float8Linear), ("int4", Int4Linear)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_language_models_linear_layers_and_no_others(
    how: Quantise, kind: type, dtype: str
) -> None:
    whole, small = load_model(TEACHER, dtype), load_model(TEACHER, dtype, quantised=how)
    before, after = layers_of(whole), layers_of(small)
    changed = {name for name in before if before[name] is not after[name]}
    text = {n for n in before if before[n] is nn.Linear and QWEN3_VL.is_text(n)}
    assert changed == text and len(text) >= 2 * 7
    assert {after[name] for name in changed} == {kind}
    kept, left = dict(whole.named_parameters()), dict(small.named_parameters())
    assert set(kept) - set(left) == {f"{name}.weight" for name in text}
    assert all(torch.equal(kept[name], left[name]) for name in left), "the rest is as it was"
    smaller = sum(kept[f"{name}.weight"].numel() for name in text)
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    saved = weight_bytes(whole) - weight_bytes(small)
    bits = 8 if how == "fp8" else 4
    assert 0.85 * smaller * (size - bits / 8) < saved < smaller * (size - bits / 8)


def test_a_layer_is_gone_once_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the whole model would not fit on the device, its layers go there one by one."""
    model = load_model(TEACHER, "float32")
    layers = [
        weakref.ref(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and QWEN3_VL.is_text(name)
    ]
    left: list[int] = []

    def counted(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left.append(sum(layer() is not None for layer in layers))
        return rounded_rows(weight_OI)

    monkeypatch.setattr(quantised, "rounded_rows", counted)
    quantised.quantise(model, "fp8")
    expected = [len(layers) - max(0, done - 1) for done in range(len(layers))]
    assert len(left) == len(layers) and all(n <= e for n, e in zip(left, expected, strict=True))


def test_none_is_the_model_as_it_was() -> None:
    whole, same = load_model(TEACHER, "float32"), load_model(TEACHER, "float32", quantised="none")
    assert layers_of(whole) == layers_of(same)
    kept, left = whole.state_dict(), same.state_dict()
    assert kept.keys() == left.keys() and all(torch.equal(kept[n], left[n]) for n in kept)


def test_an_adapters_own_matrices_stay(tmp_path: Path) -> None:
    from peft import LoraConfig

    base = make_model(tmp_path / "base", "teacher")
    model = load_model(base, "float32")
    names = list(QWEN3_VL.lora_modules)
    settings = LoraConfig(r=4, target_modules=names, base_model_name_or_path=str(base))
    cast(Callable[..., None], model.add_adapter)(settings)
    cast(Callable[..., None], model.save_pretrained)(tmp_path / "adapter")
    kinds = layers_of(load_model(tmp_path / "adapter", "float32", quantised="fp8"))
    adapted = {n: kind for n, kind in kinds.items() if ".lora_A." in n or ".lora_B." in n}
    assert adapted and set(adapted.values()) == {nn.Linear}
    bases = [kind for n, kind in kinds.items() if n.endswith("base_layer")]
    assert len(bases) == len(adapted) // 2 and set(bases) <= {Float8Linear}


def test_experts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match="experts of qwen3_vl_moe.* set teacher.quantise"):
        QWEN3_VL_MOE.refuse_quantise("fp8")
    QWEN3_VL_MOE.refuse_quantise("none")
    folder = make_model(tmp_path / "moe", "teacher", kind="qwen3_vl_moe")
    with pytest.raises(VideoOPDError, match="set teacher.quantise = 'none'"):
        load_model(folder, "float32", quantised="int4")
