"""The kernels that CUDA gets compute what transformers' layers do; here on the CPU, in float32."""

import pytest
import torch
from torch import Tensor

from opd_core.model.cuda_layers import FRAMES, _gated, rotation, use_cuda_layers
from opd_core.model.prefix_tree import pack
from opd_core.model.tree_attention import PackedAttention
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


def test_beside_an_adapter_in_float32_attention_gets_what_the_fast_kernels_take() -> None:
    trees, _ = build("qwen3_vl", SHAPES["one sentence, one rollout"])
    packed = pack(trees)
    model = TreeModel(qwen("qwen3_vl").to(torch.bfloat16), Tokenizer())
    use_cuda_layers(model.model, model.architecture.vision_settings(model.model.config))
    seen: list[torch.dtype] = []

    class Watching(PackedAttention):
        def attend(
            self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
        ) -> Tensor:
            seen.extend(x.dtype for x in (query, key, value))
            return super().attend(layer, query, key, value, scaling)

    with torch.autocast("cpu", torch.bfloat16):
        model.hidden(packed, Watching(packed, "cpu"))
    assert set(seen) == {torch.bfloat16}


def test_what_is_compiled_for_cuda_has_no_part_that_is_not() -> None:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

    plain = getattr(apply_rotary_pos_emb, "plain", apply_rotary_pos_emb)
    assert rotation(rotation(plain)) is not plain
    q, k = torch.randn(1, 4, 9, 8, requires_grad=True), torch.randn(1, 2, 9, 8)
    cos, sin = torch.randn(2, 1, 9, 8)
    gate, up = torch.randn(2, 1, 9, 16)
    for function, given in ((plain, (q, k, cos, sin)), (_gated, (gate, up))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*given), function(*given))
