"""Which layers compute their activations again."""

import pytest
import torch

from opd_core.model.prefix_tree import pack
from opd_core.model.tree_model import TreeModel
from opd_core.update.checkpointing import checkpoint_layers
from tests.opd_core.model.test_tree_model import SHAPES, Tokenizer, build, by_key, qwen


@pytest.mark.parametrize(
    ("share", "again"),
    [(False, []), (True, [0, 1, 2]), (0.34, [0]), (0.5, [0, 1]), (1.0, [0, 1, 2])],
)
def test_a_share_of_the_layers_does_and_gradients_stay(
    share: bool | float, again: list[int]
) -> None:
    trees, _ = build("qwen3_vl", SHAPES["one sentence, one rollout"])
    gradients = []
    for used in (False, share):
        model = TreeModel(qwen("qwen3_vl"), Tokenizer())
        checkpoint_layers(model.model, used)
        layers = model.architecture.module(model.model, model.architecture.layers)
        passes = [0] * len(layers)

        def count(at: int, passes: list[int] = passes) -> object:
            def hook(*_: object) -> None:
                passes[at] += 1

            return hook

        for at, layer in enumerate(layers):
            layer.self_attn.register_forward_hook(count(at))
        model.model.train()
        logprobs = by_key(model, pack(trees)).values()
        torch.stack([v.sum() for v in logprobs]).sum().backward()
        gradients.append(
            {n: p.grad for n, p in model.model.named_parameters() if p.grad is not None}
        )
    assert [at for at, count_of in enumerate(passes) if count_of == 2] == again
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(g, gradients[1][n]) for n, g in gradients[0].items() if g is not None)
