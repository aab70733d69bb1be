"""A Hugging Face video-language model that runs prefix trees.

One class for student and teacher: it loads a checkpoint folder, runs packed trees at the positions
of `positions.py`, and gives log-probabilities of completions. Only completion rows go through
`lm_head`, in chunks; a [B, T, V] tensor never exists.

Shape suffixes: N packed tokens, C completion tokens of a pack, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from opd_core.model import token_count
from opd_core.model.architectures import architecture_of
from opd_core.model.positions import PositionRule
from opd_core.model.prefix_tree import Pack, PrefixTree
from opd_core.model.transfer import one_ahead, to_device
from opd_core.model.vocabulary import HasVocabulary, excluded_token_ids
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from opd_core.extensions import Quantise
    from opd_core.model.tree_attention import TreeLayout


@dataclass(frozen=True, slots=True)
class PackInputs:
    """What one forward pass over a pack reads, where the model is."""

    pack: Pack
    token_ids_N: Tensor
    positions_3N: Tensor
    patches: Tensor
    """Of all videos, in the model's precision."""
    grids: Tensor
    """(time, height, width) of each video, in patches."""


class TreeModel:
    """A model in evaluation mode; `opd_core/update/student.py` turns on what training needs."""

    def __init__(self, model: Any, tokenizer: HasVocabulary, rows_per_chunk: int = 1024) -> None:
        from opd_core.model import tree_attention

        self.architecture = family = architecture_of(model.config)
        self.positions = PositionRule.of(model.config)
        tree_attention.register()
        self.model = model
        self.rows_per_chunk = rows_per_chunk
        self.forwards = 0
        """Passes of the language model so far; `make bench` reads it."""
        self._backbone = family.module(model, family.backbone)
        self._lm_head = family.module(model, family.lm_head)
        text = family.text_settings(model.config)
        text._attn_implementation = tree_attention.NAME
        if self.device.type == "cuda":
            from opd_core.model.cuda_layers import use_cuda_layers

            use_cuda_layers(model, family.vision_settings(model.config))
        self.excluded_ids = excluded_token_ids(tokenizer, text.vocab_size, family.placeholders)
        self._excluded = torch.tensor(self.excluded_ids, dtype=torch.long, device=self.device)
        self._prompt_positions: dict[tuple[object, ...], np.ndarray] = {}

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def inputs(self, pack: Pack) -> PackInputs:
        """A pack's tokens, positions and pixels on the model's device."""
        visions = [tree.vision for tree in pack.trees]
        device, dtype = self.device, self.model.dtype
        return PackInputs(
            pack,
            self._tensor(pack.token_ids_N),
            self._tensor(pack.positions(self.prompt_positions)),
            to_device(torch.cat([v.patches for v in visions]), device, dtype),
            to_device(torch.tensor([v.grid_thw for v in visions]), device),
        )

    def ahead(self, packs: Iterable[Pack]) -> Iterator[PackInputs]:
        """The inputs of packs; on CUDA those of the next one are brought while one is run."""
        brought = map(self.inputs, packs)
        return one_ahead(brought) if self.device.type == "cuda" else brought

    def hidden(self, inputs: Pack | PackInputs, layout: TreeLayout) -> Tensor:
        """Last hidden states, [N, D], of one forward pass over a pack."""
        if isinstance(inputs, Pack):
            inputs = self.inputs(inputs)
        self.forwards += 1
        token_count.passed(inputs.pack.tokens)
        output = self._backbone(
            input_ids=inputs.token_ids_N[None],
            position_ids=inputs.positions_3N[:, None],
            tree_layout=layout,
            use_cache=False,
            **{self.architecture.pixels: inputs.patches, self.architecture.grid: inputs.grids},
        )
        hidden_ND: Tensor = output.last_hidden_state[0]
        return hidden_ND

    def decode_hidden(self, token_ids_B: Tensor, positions_B: Tensor, layout: TreeLayout) -> Tensor:
        """Last hidden states, [B, D], of one new text token a row."""
        self.forwards += 1
        token_count.passed(len(token_ids_B))
        output = self._backbone(
            input_ids=token_ids_B[:, None],
            position_ids=positions_B[None, :, None].expand(3, -1, 1),
            tree_layout=layout,
            use_cache=False,
        )
        hidden_BD: Tensor = output.last_hidden_state[:, 0]
        return hidden_BD

    def log_softmax(self, hidden_CD: Tensor) -> Tensor:
        """Log-probabilities [C, V] in float32, -inf at the excluded ids."""
        logits_CV: Tensor = self._lm_head(hidden_CD).float()
        return logits_CV.index_fill(1, self._excluded, float("-inf")).log_softmax(dim=1)

    def completion_distributions(
        self, inputs: Pack | PackInputs, layout: TreeLayout | None = None
    ) -> Iterator[tuple[list[Hashable], Tensor, Tensor]]:
        """One forward pass; then yields, chunk by chunk, (keys, token_ids_C, log_probs_CV).

        A chunk holds whole completions in the pack's order and about `rows_per_chunk` rows.
        """
        for keys, token_ids_C, hidden_CD in self.completion_hidden(inputs, layout):
            yield keys, token_ids_C, self.log_softmax(hidden_CD)

    def completion_hidden(
        self, inputs: Pack | PackInputs, layout: TreeLayout | None = None
    ) -> Iterator[tuple[list[Hashable], Tensor, Tensor]]:
        """Hidden states before lm_head: (keys, token_ids_C, hidden_CD), in the order and the chunks
        of `completion_distributions`."""
        from opd_core.model.tree_attention import packed_attention

        pack = inputs.pack if isinstance(inputs, PackInputs) else inputs
        hidden_ND = self.hidden(inputs, layout or packed_attention(pack, self.device))
        keys: list[Hashable] = []
        rows = 0
        pending = list(pack.completions)
        for i, key in enumerate(pending):
            keys.append(key)
            rows += len(pack.completions[key])
            if rows >= self.rows_per_chunk or i + 1 == len(pending):
                predicting = self._tensor(np.concatenate([pack.predicting[k] for k in keys]))
                own = np.concatenate([pack.completions[k] for k in keys])
                token_ids_C = self._tensor(pack.token_ids_N[own])
                yield keys, token_ids_C, hidden_ND[predicting]
                keys, rows = [], 0

    def prompt_positions(self, tree: PrefixTree, segment: int) -> np.ndarray:
        """[3, n + 1] positions of a prompt segment, and of the text that follows it."""
        path = tree.path(segment)
        token_ids = tuple(t for i in path for t in tree.segments[i].token_ids)
        key = self.positions.key(token_ids, tree.vision)
        cached = self._prompt_positions.get(key)
        if cached is None:
            cached = self.positions.positions(token_ids, tree.vision)
            if len(self._prompt_positions) > 4096:
                self._prompt_positions.clear()
            self._prompt_positions[key] = cached
        return cached[:, len(token_ids) - len(tree.segments[segment].token_ids) :]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(array), self.device)


def load_model(
    folder: Path, dtype: str, device: torch.device | str = "cpu", quantised: Quantise = "none"
) -> nn.Module:
    """A checkpoint folder (full or PEFT adapter) as a model in evaluation mode.

    Raises `VideoOPDError` naming the folder unless every weight of the model is the folder's.
    """
    from opd_core.model.checkpoint import open_checkpoint

    model: nn.Module = open_checkpoint(folder, dtype, device, quantised).eval()
    return model


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise VideoOPDError(
            f"machine.device = {name!r} is not usable here ({str(error).splitlines()[0]}); "
            "set it to 'auto'"
        ) from None
    return device


def set_threads(count: int) -> None:
    """Threads of torch on CPU; 0 leaves its own choice."""
    if count:
        torch.set_num_threads(count)
