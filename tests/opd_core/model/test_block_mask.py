"""Blocks of a tree's mask, against torch's own, which asks about every pair."""

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from opd_core.model.block_mask import BLOCK, blocks_seen, tree_block_mask
from opd_core.model.cuda_attention import causal_runs
from opd_core.model.prefix_tree import PrefixTree, grow, pack


def tree(root: int, sentences: int, rollouts: int, answer: int, name: str) -> PrefixTree:
    shared = list(range(root))
    prompts = [[*shared, 1000 + s, *range(s + 3)] for s in range(sentences)]
    answers = [
        [((name, s, r), list(range(answer + r))) for r in range(rollouts)] for s in range(sentences)
    ]
    return grow(prompts, answers)


PACKS = [
    [tree(40, 1, 1, 5, "a")],
    [tree(700, 1, 8, 20, "a")],
    [tree(300, 4, 3, 50, "a"), tree(90, 2, 2, 9, "b"), tree(513, 3, 4, 70, "c")],
    [tree(BLOCK - 1, 2, 2, BLOCK, "a")],
    [tree(2 * BLOCK - 20, 1, 1, 20, "whole blocks")],
]


@pytest.mark.parametrize("trees", PACKS)
def test_it_is_the_mask_that_asking_about_every_pair_makes(trees: list[PrefixTree]) -> None:
    packed = pack(trees)
    ours = tree_block_mask(packed.last_descendants(), None, "cpu")
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


@pytest.mark.parametrize("trees", PACKS)
def test_rows_that_are_no_causal_run_lose_nothing_that_they_see(trees: list[PrefixTree]) -> None:
    packed = pack(trees)
    ends = packed.last_descendants()
    spans = causal_runs(packed, run=64, shortest=64)
    assert [stop for _, stop, _ in spans][:-1] == [start for start, _, _ in spans][1:]
    assert (spans[0][0], spans[-1][1]) == (0, packed.tokens)
    others = packed.tokens - sum(b - a for a, b, causal in spans if causal)
    assert others == 0 or others > BLOCK or not any(causal for _, _, causal in spans)
    rows = np.concatenate([np.arange(a, b) for a, b, causal in spans if not causal])
    columns = np.arange(packed.tokens)
    sees = (columns[None] <= rows[:, None]) & (rows[:, None] < ends[None])
    some, whole = blocks_seen(ends, rows)
    for i, j in np.ndindex(some.shape):
        part = sees[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
        assert some[i, j] or whole[i, j] or not part.any()
        assert not whole[i, j] or (part.all() and part.shape == (BLOCK, BLOCK))
