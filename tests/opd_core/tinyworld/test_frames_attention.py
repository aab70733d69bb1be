"""Frames in one call see what they see one by one."""

from typing import Any

import pytest
import torch

from opd_core import torchvision_guard
from opd_core.model.architectures import architecture_of
from opd_core.tinyworld.frames_attention import frames_together
from opd_core.tinyworld.models import build_model, build_processor


@pytest.fixture(scope="module")
def tower() -> Any:
    torchvision_guard.install()
    model = build_model("teacher", build_processor().tokenizer, seed=0)
    family = architecture_of(model.config)
    return family.module(model, family.vision)


def test_outputs_and_gradients_are_those_of_transformers(tower: Any) -> None:
    patches = torch.randn(2 * 5 * 4, 1536, generator=torch.Generator().manual_seed(0))
    grids = torch.tensor([[5, 2, 2], [5, 2, 2]])

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        tower.zero_grad()
        seen = tower(patches, grid_thw=grids).pooler_output
        seen.square().sum().backward()
        return seen.detach(), tower.blocks[0].attn.qkv.weight.grad.clone()

    alone = run()
    with frames_together(tower):
        together = run()
    again = run()
    for expected, got in zip(alone, together, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True)), "it is undone"


def test_frames_of_two_sizes_are_refused(tower: Any) -> None:
    patches = torch.zeros(4 + 16, 1536)
    grids = torch.tensor([[1, 2, 2], [1, 4, 4]])
    with frames_together(tower), pytest.raises(ValueError, match="one size"):
        tower(patches, grid_thw=grids)
