"""The kernels that CUDA gets compute what transformers' layers do; here on the CPU, in float32."""

import pytest
import torch

from opd_core.model.cuda_layers import FRAMES, use_cuda_layers
from opd_core.model.prefix_tree import pack
from opd_core.model.tree_model import TreeModel
from tests.opd_core.model.test_tree_model import SHAPES, Tokenizer, build, by_key, qwen


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl"])
def test_they_compute_the_same_and_pass_the_same_gradients_on(kind: str) -> None:
    trees, _ = build(kind, SHAPES["a batch of unequal trees"])
    values, gradients = [], []
    for used in (False, True):
        model = TreeModel(qwen(kind), Tokenizer())
        if used:
            settings = model.architecture.vision_settings(model.model.config)
            use_cuda_layers(model.model, settings)
            assert settings._attn_implementation == FRAMES
            assert replaced(model) > 8
        by_completion = by_key(model, pack(trees))
        torch.stack([v.sum() for v in by_completion.values()]).sum().backward()
        values.append({key: v.detach() for key, v in by_completion.items()})
        gradients.append(
            {n: p.grad for n, p in model.model.named_parameters() if p.grad is not None}
        )
    for key, value in values[0].items():
        torch.testing.assert_close(value, values[1][key], atol=1e-5, rtol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None and (other := gradients[1][name]) is not None
        assert (gradient - other).norm() <= 1e-5 * gradient.norm() + 1e-4, name


def replaced(model: TreeModel) -> int:
    return sum("forward" in vars(module) for module in model.model.modules())
