"""Blocks of a tree's mask, against torch's own, which asks about every pair."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from opd_core.model.block_mask import BLOCK, tree_block_mask
from opd_core.model.prefix_tree import PrefixTree, grow, pack


def tree(root: int, sentences: int, rollouts: int, answer: int, name: str) -> PrefixTree:
    shared = list(range(root))
    prompts = [[*shared, 1000 + s, *range(s + 3)] for s in range(sentences)]
    answers = [
        [((name, s, r), list(range(answer + r))) for r in range(rollouts)] for s in range(sentences)
    ]
    return grow(prompts, answers)


@pytest.mark.parametrize(
    "trees",
    [
        [tree(40, 1, 1, 5, "a")],
        [tree(700, 1, 8, 20, "a")],
        [tree(300, 4, 3, 50, "a"), tree(90, 2, 2, 9, "b"), tree(513, 3, 4, 70, "c")],
        [tree(BLOCK - 1, 2, 2, BLOCK, "a")],
        [tree(2 * BLOCK - 20, 1, 1, 20, "whole blocks")],
    ],
)
def test_it_is_the_mask_that_asking_about_every_pair_makes(trees: list[PrefixTree]) -> None:
    packed = pack(trees)
    ours = tree_block_mask(packed, "cpu")
    expected = create_block_mask(
        ours.mask_mod, None, None, packed.tokens, packed.tokens, device="cpu", BLOCK_SIZE=BLOCK
    )
    assert torch.equal(ours.to_dense(), expected.to_dense())
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, theirs = (getattr(m, f"{kind}_num_blocks") for m in (ours, expected))
        assert torch.equal(counts, theirs), kind
        for row, count in enumerate(counts[0, 0].tolist()):
            mine, other = (getattr(m, f"{kind}_indices")[0, 0, row, :count].sort().values
                           for m in (ours, expected))  # fmt: skip
            assert torch.equal(mine, other), (kind, row)
