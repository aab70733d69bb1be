"""A step of the optimiser, wherever the weights lie: all ways give what float32 in place gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opd_core.config.sections import UpdateSection
from opd_core.types import VideoOPDError
from opd_core.update.continuation import OPTIMIZER_FILE
from opd_core.update.pieces import Offloaded, Rounded
from opd_core.update.stepping import InPlace, Stepping
from opd_core.update.trainer_state import (
    WEIGHTS_FILE,
    read_optimizer,
    read_weights,
    write_state,
)

CPU = torch.device("cpu")


def settings(optimizer: str = "adamw") -> UpdateSection:
    given = {"learning_rate": 1e-3, "weight_decay": 0.1, "optimizer": optimizer}
    return UpdateSection.model_validate(given)


def layers(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    """A matrix, a vector and a weight that never gets a gradient; the same numbers in any type."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (96, 64), "norm": (33,), "unused": (5,)}
    values = {n: torch.randn(s, generator=generator).bfloat16() for n, s in shapes.items()}
    return {name: nn.Parameter(value.to(dtype)) for name, value in values.items()}


def kept(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: w.detach().to(torch.float32, copy=True) for name, w in weights.items()}


def steps(
    weights: dict[str, nn.Parameter], stepping: Stepping, first: int = 0, last: int = 4
) -> list[float]:
    """Steps `first` to `last`, with gradients that bfloat16 holds exactly; their norms."""
    norms = []
    for number in range(first, last):
        generator = torch.Generator().manual_seed(100 + number)
        for name in ("matrix", "norm"):
            w = weights[name]
            w.grad = torch.randn(w.shape, generator=generator).bfloat16().to(w.dtype)
        norms.append(float(stepping.clip(1.0)))
        stepping.step(1e-3 / (number + 1), seed=number)
    return norms


def in_place(optimizer: str = "adamw") -> tuple[dict[str, nn.Parameter], list[float]]:
    weights = layers()
    return weights, steps(weights, InPlace(settings(optimizer), weights))


@pytest.mark.parametrize("piece", [1 << 20, 1000])
def test_offloaded_weights_are_those_of_a_step_in_place(piece: int) -> None:
    """But for torch's fused AdamW, whose last bit may be another."""
    expected, norms = in_place()
    weights = layers()
    stepping = Offloaded(settings(), weights, kept(weights), piece)
    assert steps(weights, stepping) == pytest.approx(norms)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=3e-7)
    assert weights["unused"].equal(layers()["unused"])


def test_offloaded_bfloat16_weights_are_the_float32_ones_rounded() -> None:
    expected, _ = in_place()
    weights = layers(torch.bfloat16)
    stepping = Offloaded(settings(), weights, kept(weights), 1000)
    steps(weights, stepping)
    exact = stepping.float32_weights()
    assert exact is not None
    for name, weight in weights.items():
        torch.testing.assert_close(exact[name], expected[name].detach(), rtol=1e-6, atol=3e-7)
        assert weight.equal(exact[name].bfloat16())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adamw_4bit"])
def test_the_mean_of_many_rounded_steps_is_the_float32_step(optimizer: str) -> None:
    expected = layers()
    steps(expected, InPlace(settings(optimizer=optimizer), expected), last=1)
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in expected.items()}
    times = 64
    for seed in range(times):
        weights = layers(torch.bfloat16)
        stepping = Rounded(settings(optimizer=optimizer), weights)
        generator = torch.Generator().manual_seed(100)
        for name in ("matrix", "norm"):
            gradient = torch.randn(weights[name].shape, generator=generator).bfloat16()
            weights[name].grad = gradient
        stepping.clip(1.0)
        stepping.step(1e-3, seed)
        for name, w in weights.items():
            total[name] += w.detach().double()
    step = expected["matrix"].detach().double() - layers()["matrix"].detach().double()
    mean = total["matrix"] / times - layers()["matrix"].detach().double()
    assert float((mean - step).mean()) == pytest.approx(0.0, abs=0.03 * float(step.abs().mean()))
    assert float((mean * step).sum() / (step * step).sum()) == pytest.approx(1.0, abs=0.1)
    assert (total["unused"] / times).equal(layers()["unused"].double())


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "adamw_4bit"])
def test_low_bit_moments_take_the_steps_of_float32_ones_nearly(optimizer: str) -> None:
    exact, _ = in_place()
    near, _ = in_place(optimizer=optimizer)
    step, other = (
        torch.cat([(w - layers()[name]).detach().flatten() for name, w in weights.items()])
        for weights in (exact, near)
    )
    assert float(torch.nn.functional.cosine_similarity(step, other, dim=0)) > 0.97


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adamw_4bit"])
@pytest.mark.parametrize("kind", [InPlace, Offloaded, Rounded])
def test_what_was_saved_goes_on_bit_for_bit(
    tmp_path: Path, kind: type[InPlace | Offloaded | Rounded], optimizer: str
) -> None:
    """A process that is another one takes over weights and state, and ends with the same."""
    wanted = settings(optimizer=optimizer)
    dtype = torch.float32 if kind is InPlace else torch.bfloat16

    def start(weights: dict[str, nn.Parameter]) -> Stepping:
        if kind is Offloaded:
            return Offloaded(wanted, weights, kept(weights))
        return InPlace(wanted, weights) if kind is InPlace else Rounded(wanted, weights)

    weights = layers(dtype)
    stepping = start(weights)
    steps(weights, stepping, 0, 2)
    write_state(
        tmp_path / "v1",
        stepping.optimizer.state_dict(),
        2,
        stepping.float32_weights(),
        torch.bfloat16,
    )
    published = {n: nn.Parameter(w.detach().bfloat16().to(dtype)) for n, w in weights.items()}
    steps(weights, stepping, 2, 4)

    again = start(published)
    exact = read_weights(tmp_path / "v1", torch.bfloat16)
    assert (exact is None) == (kind is Rounded)
    if exact is not None:
        again.take_over(exact)
    assert read_optimizer(tmp_path / "v1", again.optimizer, again.shapes, CPU) == 2
    steps(published, again, 2, 4)
    for name, weight in weights.items():
        assert published[name].equal(weight), name


def test_another_type_of_the_sampler_makes_the_folder_count(tmp_path: Path) -> None:
    weights = layers()
    stepping = InPlace(settings(), weights)
    write_state(
        tmp_path / "v1",
        stepping.optimizer.state_dict(),
        0,
        stepping.float32_weights(),
        torch.bfloat16,
    )
    assert read_weights(tmp_path / "v1", torch.bfloat16) is not None
    assert read_weights(tmp_path / "v1", torch.float32) is None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    "file, damage", [(OPTIMIZER_FILE, _cut), (WEIGHTS_FILE, _cut), (OPTIMIZER_FILE, Path.unlink)]
)
def test_a_damaged_state_is_named(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    weights = layers()
    stepping = InPlace(settings(), weights)
    steps(weights, stepping)
    write_state(
        tmp_path / "v1",
        stepping.optimizer.state_dict(),
        4,
        stepping.float32_weights(),
        torch.bfloat16,
    )
    damage(tmp_path / "v1" / file)
    with pytest.raises(VideoOPDError, match=f"{file} .*remove it and the optimiser begins anew"):
        read_weights(tmp_path / "v1", torch.bfloat16)
        read_optimizer(tmp_path / "v1", stepping.optimizer, stepping.shapes, CPU)
