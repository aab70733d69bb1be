"""Scores of answers: one forward pass a pack of prefix trees, completion rows alone projected onto
the vocabulary.

Shape suffixes: C completion tokens of a chunk, T of one answer, V vocabulary, K kept, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opd_core.engines.base import Scored
from opd_core.model.divergences import entropies
from opd_core.model.prefix_tree import PrefixTree, fill, pack
from opd_core.model.tree_model import PackInputs, TreeModel

if TYPE_CHECKING:
    from opd_core.config.sections import ScoreSection


@torch.inference_mode()
def score_trees(
    model: TreeModel, trees: Sequence[PrefixTree], wanted: ScoreSection, max_tokens: int
) -> Iterator[tuple[Hashable, Scored]]:
    """(key, score) of every completion; at most `max_tokens` go through a forward pass."""
    for inputs in model.ahead(map(pack, fill(trees, max_tokens))):
        began = time.perf_counter()
        rows = list(_rows(model, inputs, wanted))
        seconds = (time.perf_counter() - began) / max(len(rows), 1)
        for key, chosen_T, top, entropy_T, hidden_TD in rows:
            ids_TK, logprobs_TK, tail_T = top or (None, None, None)
            yield (
                key,
                Scored(
                    logprobs=chosen_T.tolist(),
                    topk_token_ids=None if ids_TK is None else ids_TK.tolist(),
                    topk_logprobs=None if logprobs_TK is None else logprobs_TK.tolist(),
                    tail_logprobs=None if tail_T is None else tail_T.tolist(),
                    entropies=None if entropy_T is None else entropy_T.tolist(),
                    # Arrays, not lists: a row of a 32B teacher is 100,000 numbers.
                    hidden_states=None if hidden_TD is None else tuple(hidden_TD.numpy()),
                    seconds=seconds,
                ),
            )


_Top = tuple[Tensor, Tensor, Tensor]
_Row = tuple[Hashable, Tensor, _Top | None, Tensor | None, Tensor | None]
"""Key, log-probs [T], top-k, entropies [T], hidden states [T, D] of a completion; on the CPU."""


def _rows(model: TreeModel, inputs: PackInputs, wanted: ScoreSection) -> Iterator[_Row]:
    for keys, token_ids_C, hidden_CD in model.completion_hidden(inputs):
        logprobs_CV = model.log_softmax(hidden_CD)
        chosen_C = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0].cpu()
        top = _top(logprobs_CV, wanted.teacher_topk)
        entropy_C = entropies(logprobs_CV).cpu() if wanted.teacher_entropy else None
        kept_CD = hidden_CD.float().cpu() if wanted.hidden_states else None
        start = 0
        for key in keys:
            part = slice(start, start + len(inputs.pack.completions[key]))
            start = part.stop
            yield (
                key,
                chosen_C[part],
                None if top is None else (top[0][part], top[1][part], top[2][part]),
                None if entropy_C is None else entropy_C[part],
                None if kept_CD is None else kept_CD[part],
            )


def _top(logprobs_CV: Tensor, k: int) -> _Top | None:
    """ids [C, K], log-probs [C, K], log of the remaining mass [C]; on the CPU. None for k = 0.

    K is smaller than k where fewer tokens are possible.
    """
    if k == 0:
        return None
    possible = int((logprobs_CV[0] > float("-inf")).sum())
    values, ids = logprobs_CV.topk(min(k, possible), dim=1)
    rest = logprobs_CV.scatter(1, ids, float("-inf")).logsumexp(dim=1)
    # No mass at all has no finite logarithm; the smallest float32 stands for it.
    rest = rest.clamp(min=torch.finfo(torch.float32).min)
    return ids.cpu(), values.cpu(), rest.cpu()
