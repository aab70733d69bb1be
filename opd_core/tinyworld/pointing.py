"""Auxiliary losses that show an untrained language model where to look; training only.

Cross-entropy on an answer says "3" was right, not that the answer stands beside the vision token
of second 3. From nothing that takes thousands of steps to find out. So while a tiny model is young,
three losses speak to the rows that predict the digits of the start and of the end:

    inside   hidden states after an early layer tell which seconds show what is asked for
             (throw-away head, sigmoid, each second)
    ends     in the last layer's attention, head 0 of a start row looks at the first of those
             seconds, head 1 of an end row at the last (no head of its own: the real attention)
    clock    the vision tokens, before the last layer, know their second (throw-away head)

Highlight detection beside moment retrieval is the published form of the first (QVHighlights, arXiv
2107.09609).

Shape suffixes: R rows, S seconds, K key rows, N packed tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opd_core.model.architectures import architecture_of
from opd_core.model.prefix_tree import Pack
from opd_core.model.tree_attention import TreeLayout
from opd_core.types import Span


class ListeningAttention:
    """A tree layout that keeps the queries and keys of one layer, after their rotation."""

    def __init__(self, inner: TreeLayout, layer: int) -> None:
        self._inner = inner
        self._layer = layer
        self.query: Tensor | None = None
        """[heads, N, size]"""
        self.key: Tensor | None = None
        self.scaling = 1.0

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        if layer == self._layer:
            self.query, self.key, self.scaling = query[0], key[0], scaling
        return self._inner.attend(layer, query, key, value, scaling)


@dataclass(frozen=True, slots=True)
class _Targets:
    rows_R: Tensor
    """Packed rows that predict a digit (or the point after it) of a start or an end."""
    is_end_R: Tensor
    """0 start, 1 end: also the number of the head that points."""
    video_RS: Tensor
    """Packed rows of the vision tokens of the same video."""
    root_RK: Tensor
    """Packed rows from the start of the prompt to its last vision token."""
    inside_RS: Tensor
    second_R: Tensor
    """The second to point at."""


class Pointing(nn.Module):
    """The throw-away heads, and ears at two layers of a language model."""

    def __init__(self, model: Any, tokenizer: Any, inside_layer: int, seconds: int) -> None:
        super().__init__()
        family = architecture_of(model.config)
        width = family.text_settings(model.config).hidden_size
        layers = family.module(model, family.layers)
        self.last_layer = len(layers) - 1
        self.row = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.tensor(-1.0))
        self.clock = nn.Linear(width, seconds)
        self._seconds = seconds
        self._space = tokenizer.convert_tokens_to_ids("Ġ")
        self._video_pad = getattr(model.config, family.video_token_id)
        self._heard: dict[int, Tensor] = {}
        self._inside_layer = inside_layer
        self._hooks = [
            layers[i].register_forward_hook(self._listener(i))
            for i in {inside_layer, self.last_layer - 1}
        ]

    def _listener(self, layer: int) -> Any:
        def listen(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._heard[layer] = output[0]

        return listen

    def close(self) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()
        self._heard.clear()

    def loss(
        self, packed: Pack, attention: ListeningAttention, spans: Mapping[Hashable, Span]
    ) -> Tensor:
        """The auxiliary loss of the forward pass just made with `attention`; spans, by key, in
        seconds."""
        targets = self._targets(packed, spans)
        return self._inside(targets) + 0.3 * (_ends(targets, attention) + self._clock(targets))

    def _inside(self, targets: _Targets) -> Tensor:
        hidden_ND = self._heard[self._inside_layer]
        rows_RD, seconds_RSD = hidden_ND[targets.rows_R], hidden_ND[targets.video_RS]
        scores_RS = (self.second(seconds_RSD) * self.row(rows_RD)[:, None]).sum(dim=2)
        scores_RS = scores_RS * hidden_ND.shape[1] ** -0.5 + self.bias
        return F.binary_cross_entropy_with_logits(scores_RS, targets.inside_RS)

    def _clock(self, targets: _Targets) -> Tensor:
        hidden_ND = self._heard[self.last_layer - 1]
        video_V = targets.video_RS.unique(dim=0).flatten()
        seconds_V = torch.arange(self._seconds, device=video_V.device).repeat(
            len(video_V) // self._seconds
        )
        return F.cross_entropy(self.clock(hidden_ND[video_V]), seconds_V)

    def _targets(self, packed: Pack, spans: Mapping[Hashable, Span]) -> _Targets:
        rows: list[int] = []
        is_end: list[int] = []
        videos: list[list[int]] = []
        roots: list[list[int]] = []
        inside: list[list[float]] = []
        seconds: list[int] = []
        for t, tree in enumerate(packed.trees):
            root = packed.rows(t, 0)
            video = [r for r in root if packed.token_ids_N[r] == self._video_pad]
            for segment in tree.segments:
                if segment.key is None:
                    continue
                span = spans[segment.key]
                own = packed.completions[segment.key]
                spaces = [p for p, token in enumerate(segment.token_ids) if token == self._space]
                for end, place in enumerate(spaces):
                    for row in own[place : place + 2]:
                        rows.append(int(row))
                        is_end.append(end)
                        videos.append(video)
                        roots.append(list(range(root.start, video[-1] + 1)))
                        inside.append(
                            [float(span.start <= s < span.end) for s in range(self._seconds)]
                        )
                        seconds.append(int(span.end) - 1 if end else int(span.start))
        device = self.bias.device
        return _Targets(
            rows_R=torch.tensor(rows, device=device),
            is_end_R=torch.tensor(is_end, device=device),
            video_RS=torch.tensor(videos, device=device),
            root_RK=torch.tensor(roots, device=device),
            inside_RS=torch.tensor(inside, device=device),
            second_R=torch.tensor(seconds, device=device),
        )


def _ends(targets: _Targets, attention: ListeningAttention) -> Tensor:
    """Cross-entropy of the pointing head's attention within the video's part of the prompt."""
    assert attention.query is not None and attention.key is not None
    head_R = targets.is_end_R
    query = attention.query[head_R, targets.rows_R]
    key = attention.key[head_R[:, None], targets.root_RK]
    scores_RK = (key @ query[:, :, None])[:, :, 0] * attention.scaling
    target_R = targets.video_RS.gather(1, targets.second_R[:, None])[:, 0] - targets.root_RK[:, 0]
    return F.cross_entropy(scores_RK, target_R)
