"""The engine that every machine has: transformers, with one prefill a video.

The trees of a batch (video -> sentences) are prefilled as packed sequences, their keys and values
kept; every sentence's rows then decode against them. Nothing is expanded for the rollouts of a
prompt, and finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from opd_core.engines.base import (
    Request,
    Sample,
    SamplingParams,
    Scored,
    ScoreRequest,
    SeenPrompt,
    draw_tokens,
    pixel_sample,
    uniforms,
)
from opd_core.engines.hf.scoring import score_trees
from opd_core.model.prefix_tree import Pack, PrefixTree, fill, grow, pack
from opd_core.model.tree_attention import DecodeAttention, packed_attention
from opd_core.model.tree_model import TreeModel, load_model
from opd_core.model.vocabulary import end_token_ids
from opd_core.prompts.encoder import shared_vision

if TYPE_CHECKING:
    from opd_core.config.sections import ScoreSection


class HFEngine:
    name = "hf"
    version = f"transformers {version('transformers')}, torch {torch.__version__}"

    def __init__(
        self,
        model: TreeModel,
        tokenizer: Any,
        max_tokens_per_pack: int = 16384,
        max_scored_per_pack: int = 16384,
    ) -> None:
        """Tokens of one forward pass: of prompts that are answered, of answers that are scored."""
        self.model = model
        self._max_tokens = max_tokens_per_pack
        self._max_scored = max_scored_per_pack
        self._end_ids = end_token_ids(model.model.generation_config, tokenizer)

    @classmethod
    def load(cls, folder: Path, tokenizer: Any, dtype: str, device: Any) -> HFEngine:
        return cls(TreeModel(load_model(folder, dtype, device), tokenizer), tokenizer)

    @torch.inference_mode()
    def sample(
        self, videos: Sequence[Sequence[Request]], params: SamplingParams
    ) -> dict[Hashable, list[Sample]]:
        requests = [request for video in videos for request in video]
        trees = [
            grow(
                [r.prompt.token_ids for r in video],
                [[] for _ in video],
                shared_vision([r.prompt for r in video]),
            )
            for video in videos
        ]
        prefixes: list[_Prefix] = []
        for group in fill(trees, self._max_tokens):
            prefixes.extend(self._prefill(pack(group)))
        decoding = _Decoding(self.model, requests, prefixes, params, self._end_ids, self._agreed)
        return decoding.run()

    def _agreed(self, tokens_B: Tensor) -> Tensor:
        """What was drawn, as whoever computes along has it too."""
        return tokens_B

    def score(
        self, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
    ) -> Iterator[tuple[Hashable, Scored]]:
        trees = [
            grow(
                [r.prompt.token_ids for r in video],
                [list(r.answers.items()) for r in video],
                shared_vision([r.prompt for r in video]),
            )
            for video in videos
        ]
        return score_trees(self.model, trees, wanted, self._max_scored)

    def _prefill(self, packed: Pack) -> list[_Prefix]:
        layout = packed_attention(packed, self.model.device, keep=True)
        hidden_ND = self.model.hidden(packed, layout)
        assert layout.kept is not None
        prefixes = []
        for t, tree in enumerate(packed.trees):
            pixels = pixel_sample(tree.vision.patches)
            for s in _ends(tree):
                rows = torch.cat(
                    [torch.as_tensor(packed.rows(t, i), dtype=torch.long) for i in tree.path(s)]
                ).to(self.model.device)
                cache = {
                    layer: (key[0, :, rows], value[0, :, rows])
                    for layer, (key, value) in layout.kept.items()
                }
                following = int(self.model.prompt_positions(tree, s)[0, -1])
                token_ids = tuple(packed.token_ids_N[rows.cpu().numpy()].tolist())
                seen = SeenPrompt(
                    token_ids,
                    tree.vision.grid_thw,
                    pixels,
                    second_per_grid=tree.vision.second_per_grid,
                    answer_position=following,
                )
                prefixes.append(_Prefix(cache, len(rows), following, hidden_ND[rows[-1]], seen))
        return prefixes


def _ends(tree: PrefixTree) -> list[int]:
    """The segments at which prompts end: the root alone, or the sentences."""
    parents = {s.parent for s in tree.segments}
    return [i for i in range(len(tree.segments)) if i not in parents]


class _Prefix:
    """The prefilled prompt of one request."""

    def __init__(
        self,
        cache: dict[int, tuple[Tensor, Tensor]],
        length: int,
        position: int,
        hidden_D: Tensor,
        seen: SeenPrompt,
    ) -> None:
        self.cache = cache
        self.length = length
        self.position = position
        self.hidden_D = hidden_D
        self.seen = seen


class _Decoding:
    """P prompts with G slots each; slots that finish leave, prompts that finish leave.

    A prompt with fewer live rows than G fills its slots with copies of its first live row, whose
    tokens nobody reads.
    """

    def __init__(
        self,
        model: TreeModel,
        requests: Sequence[Request],
        prefixes: Sequence[_Prefix],
        params: SamplingParams,
        end_ids: frozenset[int],
        agreed: Callable[[Tensor], Tensor],
    ) -> None:
        self._model = model
        self._agreed = agreed
        self._params = params
        self._requests = requests
        self._seen = [prefix.seen for prefix in prefixes]
        self._end_ids = torch.tensor(sorted(end_ids), device=model.device)
        self._stride = self._group = max(len(r.seeds) for r in requests)
        owner = [(p, min(g, len(r.seeds) - 1)) for p, r in enumerate(requests)
                 for g in range(self._group)]  # fmt: skip
        self._rows = [p * self._stride + g for p, g in owner]
        """The answer (prompt, sample) that each slot decodes."""
        seeds = [requests[p].seeds[g] for p, g in owner]
        self._uniforms = uniforms(seeds, params.max_new_tokens).to(model.device)
        self._answers: dict[int, tuple[list[int], list[float]]] = {
            row: ([], []) for row in self._rows
        }
        self._live = set(self._answers)
        self._layout = DecodeAttention(
            _stack_prefixes(prefixes),
            torch.tensor([p.length for p in prefixes], device=model.device),
            self._group,
        )
        self._position_B = torch.tensor(
            [p.position for p in prefixes], device=model.device
        ).repeat_interleave(self._group)
        self._hidden_BD = torch.stack([p.hidden_D for p in prefixes]).repeat_interleave(
            self._group, dim=0
        )

    def run(self) -> dict[Hashable, list[Sample]]:
        finished: dict[int, str] = {}
        for step in range(self._params.max_new_tokens):
            logprobs_BV = self._model.log_softmax(self._hidden_BD)
            drawn_B = draw_tokens(logprobs_BV, self._uniforms[:, step], self._params)
            tokens_B = self._agreed(drawn_B)
            chosen_B = logprobs_BV.gather(1, tokens_B[:, None])[:, 0]
            ended = torch.isin(tokens_B, self._end_ids).tolist()
            seen: set[int] = set()
            for row, token, logprob, end in zip(
                self._rows, tokens_B.tolist(), chosen_B.tolist(), ended, strict=True
            ):
                if row in seen or row not in self._live:
                    continue
                seen.add(row)
                token_ids, logprobs = self._answers[row]
                token_ids.append(token)
                logprobs.append(logprob)
                if end:
                    finished[row] = "stop"
            self._live -= finished.keys()
            if not self._live or step + 1 == self._params.max_new_tokens:
                break
            tokens_B = self._drop_finished(tokens_B)
            self._hidden_BD = self._model.decode_hidden(tokens_B, self._position_B, self._layout)
            self._position_B = self._position_B + 1
        return self._collect(finished)

    def _drop_finished(self, tokens_B: Tensor) -> Tensor:
        """Repack the slots when a prompt has finished or no prompt needs all its slots."""
        slots: dict[int, dict[int, int]] = {}
        for slot, row in enumerate(self._rows):
            if row in self._live:
                slots.setdefault(slot // self._group, {}).setdefault(row, slot)
        needed = max(len(rows) for rows in slots.values())
        if len(slots) * self._group == len(self._rows) and needed == self._group:
            return tokens_B
        kept_slots: list[int] = []
        for rows in slots.values():
            live = list(rows.values())
            kept_slots.extend(live + live[:1] * (needed - len(live)))
        index = torch.tensor(kept_slots, device=tokens_B.device)
        prompts = torch.tensor(list(slots), device=tokens_B.device)
        self._layout.keep(prompts, index, needed)
        self._group = needed
        self._rows = [self._rows[slot] for slot in kept_slots]
        self._uniforms = self._uniforms[index]
        self._position_B = self._position_B[index]
        return tokens_B[index]

    def _collect(self, finished: dict[int, str]) -> dict[Hashable, list[Sample]]:
        result: dict[Hashable, list[Sample]] = {}
        for p, request in enumerate(self._requests):
            samples = []
            for g in range(len(request.seeds)):
                token_ids, logprobs = self._answers[p * self._stride + g]
                reason = finished.get(p * self._stride + g, "length")
                samples.append(Sample(tuple(token_ids), tuple(logprobs), reason, self._seen[p]))
            result[request.key] = samples
        return result


def _stack_prefixes(prefixes: Sequence[_Prefix]) -> dict[int, tuple[Tensor, Tensor]]:
    """layer -> keys, values [P, H, L, D], zero-padded to the longest prompt."""
    longest = max(p.length for p in prefixes)
    stacked: dict[int, tuple[Tensor, Tensor]] = {}
    for layer in list(prefixes[0].cache):
        both = []
        for which in (0, 1):
            first = prefixes[0].cache[layer][which]
            out = first.new_zeros(len(prefixes), first.shape[0], longest, first.shape[2])
            for p, prefix in enumerate(prefixes):
                out[p, :, : prefix.length] = prefix.cache[layer][which]
            both.append(out)
        for prefix in prefixes:
            del prefix.cache[layer]
        stacked[layer] = (both[0], both[1])
    return stacked
