"""What the bench of quantised teachers measures, held against formulas of its own."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from flows.bench import quantised_teacher as bench
from opd_core.model.prefix_tree import pack
from opd_core.model.tree_model import TreeModel


def test_two_models_are_compared_at_each_token_of_the_answers() -> None:
    whole, tokenizer, trees = bench._drawn(1, 3)
    other = copy.deepcopy(whole.model)
    with torch.no_grad():
        other.lm_head.weight[7] *= 1.5
    model = TreeModel(other, tokenizer)
    measured = bench.compared(whole, model, trees)
    same = bench.compared(whole, whole, trees)
    assert float(same.kl.max()) == 0.0 == float(same.change.max()) and bool(same.same_top.all())
    tokens, kls, changes = 0, [], []
    with torch.inference_mode():
        rows = [next(iter(m.completion_distributions(pack(trees)))) for m in (whole, model)]
    for token, before, after in zip(rows[0][1].tolist(), rows[0][2], rows[1][2], strict=True):
        tokens += 1
        both = zip(before.tolist(), after.tolist(), strict=True)
        kls.append(sum(math.exp(p) * (p - q) for p, q in both if p > -math.inf))
        changes.append(abs(float(before[token] - after[token])))
    assert measured.kl.tolist() == pytest.approx(kls, abs=1e-5)
    assert measured.change.tolist() == pytest.approx(changes, abs=1e-6)
    told = measured.told()
    assert told["tokens"] == tokens == bench.ROLLOUTS * 3
    assert told["KL, largest"] == pytest.approx(max(kls), abs=1e-5)
    assert told["KL, 50 %"] <= told["KL, 99 %"] <= told["KL, 99.9 %"] <= told["KL, largest"]


@pytest.mark.in_turn
def test_fewer_bits_are_further_away_and_smaller() -> None:
    rows = list(bench.quantised_teacher_rows(4, 1, 4, world_videos=8))
    assert len(rows) == 2 * len(bench.WAYS)
    for start in (0, len(bench.WAYS)):
        bfloat16, fp8, with_activations, int4 = rows[start : start + len(bench.WAYS)]
        assert 0 < bfloat16.value < fp8.value < with_activations.value < int4.value
        sizes = [row.details["MiB of weights"] for row in (bfloat16, fp8, int4)]
        assert sizes[0] > sizes[1] > sizes[2]
        assert with_activations.details["MiB of weights"] == sizes[1]
        assert all(0 <= row.details["same top token"] <= 1 for row in rows)
