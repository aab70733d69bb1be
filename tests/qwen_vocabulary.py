"""Qwen3-VL's vocabulary, whole: 151,643 merged tokens and its 26 control tokens.

The ranks are those that Qwen published for tiktoken; the package `dashscope` carries them. A
Hugging Face tokenizer wants merges instead: the two parts of each token that the ranks put together
last.
Nothing of that package is imported.
"""

from __future__ import annotations

import base64
from functools import cache
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.tinyworld.models import CHAT_TEMPLATE

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer, Qwen3VLProcessor

RANKS, ROWS = 151_643, 151_936
"""Merged tokens, and the rows of the published models' embedding: 267 of them are no token."""
CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""From id 151,643 on; from `<tool_call>` on they are added tokens and not special."""
SPECIAL = CONTROL[: CONTROL.index("<tool_call>")]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's: a digit is a token by itself."""
TEMPLATE = (
    "{%- if tools %}{{- 'Answer within <tool_call></tool_call>; you get <tool_response>"
    "</tool_response>.' }}{% endif %}" + CHAT_TEMPLATE
)
"""It writes the tokens of tool calls, as Qwen3-VL's does."""


@cache
def ranks() -> dict[bytes, int]:
    """Token -> rank, which is its id."""
    file = Path(str(distribution("dashscope").locate_file("dashscope/resources/qwen.tiktoken")))
    pairs = (line.split() for line in file.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def parts(token: bytes, known: dict[bytes, int]) -> tuple[bytes, bytes]:
    """What is merged last where the ranks below the token's own are applied to its bytes."""
    pieces = [bytes([b]) for b in token]
    while len(pieces) > 2:
        pairs = [known.get(a + b, RANKS) for a, b in pairwise(pieces)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces[0], pieces[1]


@cache
def tokenizer() -> Qwen2Tokenizer:
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    known = ranks()
    merges = [tuple(map(text, parts(token, known))) for token in known if len(token) > 1]
    made = Qwen2Tokenizer(
        vocab={text(token): rank for token, rank in known.items()},
        merges=merges,
        eos_token=CONTROL[0],
        pad_token=CONTROL[0],
        unk_token=CONTROL[0],
        extra_special_tokens=list(SPECIAL),
        model_max_length=262_144,
    )
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in CONTROL])
    made.eos_token = "<|im_end|>"
    return made


@cache
def processor() -> Qwen3VLProcessor:
    """The tiny world's, with this vocabulary."""
    from opd_core import torchvision_guard

    torchvision_guard.install()
    from transformers import Qwen3VLProcessor

    from opd_core.tinyworld.models import build_processor

    tiny = build_processor()
    return Qwen3VLProcessor(
        image_processor=tiny.image_processor,
        tokenizer=tokenizer(),
        video_processor=tiny.video_processor,
        chat_template=TEMPLATE,
    )


def save_model(folder: Path, seed: int, tied: bool, hidden: int = 64) -> Path:
    """A `qwen3_vl` of one layer, drawn from `seed`, whose embedding has as many rows as the
    published models'; in bfloat16, as they are."""
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from opd_core.model.checkpoint import save_checkpoint

    ids = {token: RANKS + i for i, token in enumerate(CONTROL)}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": ROWS, "hidden_size": hidden, "intermediate_size": 2 * hidden,
            "num_hidden_layers": 2, "num_attention_heads": hidden // 32,
            "num_key_value_heads": hidden // 32, "head_dim": 32, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                "mrope_section": [6, 5, 5], "mrope_interleaved": True},
            "pad_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
            "tie_word_embeddings": tied, "initializer_range": 0.08,
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 1,
            "out_hidden_size": hidden, "num_position_embeddings": 4,
            "deepstack_visual_indexes": [0], "initializer_range": 0.08, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"],
    )  # fmt: skip
    save_checkpoint(model, folder)
    processor().save_pretrained(folder)
    return folder
