"""Models and prompts drawn from a seed, of any shape: time does not depend on what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from opd_core import torchvision_guard
from opd_core.model.architectures import QWEN3_VL
from opd_core.model.tree_model import TreeModel
from opd_core.model.vision_input import VisionInput
from opd_core.prompts.encoder import EncodedPrompt
from opd_core.update.checkpointing import checkpoint_layers


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool = False
    """Whether the head is the embedding."""


class DrawnTokenizer:
    """The last ids are Qwen's vision tokens; no id ends an answer."""

    eos_token_id = None

    def __init__(self, vocabulary: int) -> None:
        names = QWEN3_VL.placeholders
        self.words = vocabulary - len(names)
        self.ids = {name: self.words + i for i, name in enumerate(names)}
        self._vocabulary = {f"t{i}": i for i in range(self.words)} | self.ids

    @classmethod
    def of(cls, shape: Shape) -> DrawnTokenizer:
        return cls(shape.text["vocab_size"])

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """`count` ids of words."""
        return torch.randint(0, self.words, (count,), generator=generator).tolist()


def drawn_model(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype | None = None,
    checkpointed: float = 1.0,
) -> TreeModel:
    """A Qwen3-VL of this shape, by default bfloat16 on CUDA, with its vision frozen; while it
    trains, this share of its layers compute their activations again."""
    tokenizer = DrawnTokenizer.of(shape)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = draw_weights(shape, device, dtype, tokenizer.ids.__getitem__)
    QWEN3_VL.freeze_vision(model)
    checkpoint_layers(model, checkpointed)
    return TreeModel(model, tokenizer)


def draw_weights(
    shape: Shape, device: torch.device, dtype: torch.dtype, id_of: Callable[[str], int]
) -> Any:
    """The transformers model; `id_of` gives the ids of Qwen's vision tokens."""
    torchvision_guard.install()
    config = QWEN3_VL.load_class().config_class(
        text_config=shape.text,
        vision_config=shape.vision,
        tie_word_embeddings=shape.tied,
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
    )
    torch.manual_seed(0)
    with device:
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return QWEN3_VL.load_class()(config).eval()
        finally:
            torch.set_default_dtype(previous)


TIMESTAMP, BESIDE_A_FRAME = 4, 6
"""Tokens of a frame's time; those with the two marks around its vision tokens."""


def drawn_prompt(
    tokenizer: DrawnTokenizer, frames: int, side: int, sentence: int, seed: int
) -> EncodedPrompt:
    """`frames` x (`BESIDE_A_FRAME` + `side` x `side` vision tokens), then `sentence` tokens."""
    generator = torch.Generator().manual_seed(seed)
    video = [
        token
        for _ in range(frames)
        for token in (
            *tokenizer.draw(TIMESTAMP, generator),
            tokenizer.ids["<|vision_start|>"],
            *[tokenizer.ids["<|video_pad|>"]] * side**2,
            tokenizer.ids["<|vision_end|>"],
        )
    ]
    patches = torch.randn(frames * side**2 * 4, 3 * 2 * 16 * 16, generator=generator)
    vision = VisionInput(patches, (frames, 2 * side, 2 * side), 1.0)
    return EncodedPrompt(tuple(video + tokenizer.draw(sentence, generator)), vision)
