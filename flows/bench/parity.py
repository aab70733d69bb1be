"""float32 log-probs of prefix trees on this machine's device, beside the CPU's."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from flows.bench.drawn import DrawnTokenizer, drawn_model, drawn_prompt
from flows.bench.interleaved import Row, at_most
from flows.bench.shapes import SMALL
from opd_core.model.prefix_tree import Pack, grow, pack
from opd_core.model.tree_model import TreeModel

BOUND = 1e-4
"""Nats that two orders of summation may differ by in float32; TF32 makes twenty times of it."""
VIDEOS, SENTENCES, ROLLOUTS = 3, 3, 4


def parity_rows() -> Iterator[Row]:
    """The largest difference over a pack of three videos."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wide = replace(SMALL, text={**SMALL.text, "hidden_size": 256, "num_hidden_layers": 4})
    wide = replace(wide, vision={**wide.vision, "out_hidden_size": 256})
    packed = _pack(DrawnTokenizer.of(wide))
    by_cpu = drawn_model(wide, torch.device("cpu"), torch.float32)
    by_device = drawn_model(wide, device, torch.float32)
    by_device.model.load_state_dict(by_cpu.model.state_dict())
    expected, seen = _logprobs(by_cpu, packed), _logprobs(by_device, packed)
    largest = max(float((expected[k] - seen[k]).abs().max()) for k in expected)
    yield at_most(
        f"float32 log-probs of trees: {device.type} against CPU", largest, BOUND, unit=" nats",
        tokens=packed.tokens,
    )  # fmt: skip


def _pack(tokenizer: DrawnTokenizer) -> Pack:
    generator = torch.Generator().manual_seed(0)
    trees = []
    for video in range(VIDEOS):
        prompts = [drawn_prompt(tokenizer, 5 + video, 4, 9, seed=video) for _ in range(SENTENCES)]
        shared = prompts[0].token_ids[:-9]
        answers = [
            [((video, s, r), tokenizer.draw(7 + r, generator)) for r in range(ROLLOUTS)]
            for s in range(SENTENCES)
        ]
        sentences = [(*shared, *tokenizer.draw(9, generator)) for _ in range(SENTENCES)]
        trees.append(grow(sentences, answers, prompts[0].vision))
    return pack(trees)


@torch.inference_mode()
def _logprobs(model: TreeModel, packed: Pack) -> dict[Hashable, Tensor]:
    rows: dict[Hashable, Tensor] = {}
    for keys, token_ids_C, logprobs_CV in model.completion_distributions(packed):
        chosen_C = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0].cpu()
        rows |= zip(keys, chosen_C.split([len(packed.completions[k]) for k in keys]), strict=True)
    return rows
