"""What the weights of a real model lie in, trained and frozen, for each way to have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opd_core.config.load import load_config
from opd_core.model.architectures import architecture_of
from opd_core.model.tree_model import load_model
from opd_core.update.in_memory import InMemory
from opd_core.update.trainable import choose_trainable

ROOT = Path(__file__).resolve().parents[3]
F32, BF16 = torch.float32, torch.bfloat16
LORA = ["update.lora.rank=4", "update.freeze_vision=true"]
FROZEN = ["update.freeze_vision=true"]


@pytest.mark.parametrize(
    "served, given, trained, frozen, autocast",
    [
        ("float32", FROZEN, F32, F32, None),
        ("bfloat16", FROZEN, F32, BF16, BF16),
        ("bfloat16", [*FROZEN, "update.weights='bfloat16'"], BF16, BF16, None),
        ("bfloat16", [*FROZEN, "update.offload=true"], BF16, BF16, None),
        ("float32", [*FROZEN, "update.offload=true"], F32, F32, None),
        ("bfloat16", LORA, F32, BF16, BF16),
        ("bfloat16", [*LORA, "update.weights='bfloat16'"], BF16, BF16, None),
        ("bfloat16", [*LORA, "update.offload=true"], BF16, BF16, None),
    ],
)
def test_types(
    served: str,
    given: list[str],
    trained: torch.dtype,
    frozen: torch.dtype,
    autocast: torch.dtype | None,
) -> None:
    config = load_config(ROOT / "configs/tiny.toml", [f"student.dtype='{served}'", *given])
    memory, folder = InMemory.of(config), config.student.path
    model = load_model(folder, memory.opened_as(folder, config.update.lora is not None))
    weights = choose_trainable(model, config, folder)
    family = architecture_of(model.config)
    kept = memory.lay_out(model, weights, torch.device("cpu"))
    assert memory.autocast == autocast
    others = {n: p for n, p in model.named_parameters() if n not in weights}
    assert {p.dtype for p in weights.values()} == {trained}
    assert {p.dtype for p in others.values()} == {frozen}
    assert any(family.is_vision(name) for name in others)
    assert not any(p.requires_grad for p in others.values())
    if config.update.lora is not None:
        assert all("lora_" in name for name in weights), "the base is among the frozen"
    assert kept.keys() == (weights.keys() if config.update.offload else set())
    for name, exact in kept.items():
        assert exact.dtype == F32 and exact.to(trained).equal(weights[name].detach())
        assert exact.data_ptr() != weights[name].data_ptr()
