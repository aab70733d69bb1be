"""Tiny Qwen3-VL models, their tokenizer and their processor, in the real formats.

Nothing here is a stand-in: the folders written by this module hold a
`Qwen3VLForConditionalGeneration`, a `Qwen3VLProcessor` and a `Qwen2Tokenizer`, and load through
`AutoModelForImageTextToText` and `AutoProcessor` as the published checkpoints do. Only the
numbers are small: a vocabulary of 448 tokens, 32 x 32 pixels a frame (one vision token a second),
one to two million parameters.

Kept from Qwen on purpose, because the pipeline has to cope with them: digits are split one by one,
video placeholders are ordinary entries of the vocabulary (a student can sample them), features of
inner vision layers are added to the first text layers (deepstack), and `generation_config.json`
asks for temperature 0.7, top_p 0.8, top_k 20. Left out: tool calls in the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opd_core.model.architectures import QWEN3_VL, Architecture
from opd_core.model.file_modes import give_umask_modes
from opd_core.tinyworld.scenes import SHORT, Scene
from opd_core.tinyworld.world import ANY_MOTION, COLOURS, FORMS, MOTIONS

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer, Qwen3VLProcessor

Role = Literal["teacher", "student"]

VOCAB_SIZE = 448
"""Entries of the tokenizer, special tokens included."""
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *QWEN3_VL.placeholders,
)
FRAME_PIXELS = 32 * 32
"""Pixels of a frame as the models see it: one vision token for each two frames."""
MEAN_STD = [0.5, 0.5, 0.5]
"""Image and video processor must agree: vLLM normalises video with the image processor's."""
INITIALIZER_RANGE = 0.08
"""About 1 / sqrt(width). The usual 0.02 is meant for widths of thousands; at a width of a hundred
it makes every layer nearly deaf to its input, and vision takes several times as long to take hold.
"""

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for content in message.content %}
            {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif content.type == 'video' or 'video' in content %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What differs between the two models; widths in units, depths in layers."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    vision_hidden: int
    vision_depth: int
    vision_mlp: int
    head_dim: int = 32
    vision_heads: int = 4


SIZES: dict[Role, ModelSize] = {
    "teacher": ModelSize(
        hidden=128, layers=5, heads=4, mlp=320, vision_hidden=96, vision_depth=2, vision_mlp=192
    ),
    "student": ModelSize(
        hidden=96, layers=4, heads=3, mlp=224, vision_hidden=48, vision_depth=2, vision_mlp=96
    ),
}


def corpus() -> Iterator[str]:
    """All kinds of text which the models ever see, for the tokenizer's training; times of another
    scene are of the same digits."""
    from opd_core.prompts.encoder import TIMELENS

    for colour in COLOURS:
        for form in FORMS:
            for sentence in (*ANY_MOTION, *(s for pair in MOTIONS.values() for s in pair)):
                query = TIMELENS.format(query=sentence.format(f"{colour} {form}"))
                yield f"user\n{query}\nassistant\n"
    for start in range(SHORT.seconds):
        yield f"The event happens in {start}.0 - {start + 1}.0 seconds"
        yield f"<{start}.3 seconds>"


def build_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE of `VOCAB_SIZE` entries with Qwen's pre-tokenizer and special tokens."""
    from tokenizers import models, trainers
    from transformers import Qwen2Tokenizer

    # Only the trainer sees this one: its pre-tokenizer is taken from the class itself.
    raw = Qwen2Tokenizer()._tokenizer
    raw.model = models.BPE()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=_byte_alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    raw.train_from_iterator(sorted(set(corpus())), trainer)
    model = json.loads(raw.to_str())["model"]
    order = sorted(model["vocab"], key=model["vocab"].__getitem__)
    learned = [token for token in order if token not in SPECIAL_TOKENS]
    vocab = {token: i for i, token in enumerate((*learned, *SPECIAL_TOKENS))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=4096,
    )
    return tokenizer


def _byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def build_processor(scene: Scene = SHORT) -> Qwen3VLProcessor:
    """The processor that the models of a scene share: two frames of 64 x 64 a second become one
    vision token.

    Call `torchvision_guard.install()` first.
    """
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    frames = 2 * scene.seconds
    common = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": MEAN_STD,
        "image_std": MEAN_STD,
    }
    image = Qwen2VLImageProcessor(
        size={"shortest_edge": FRAME_PIXELS, "longest_edge": FRAME_PIXELS}, **common
    )
    video = Qwen3VLVideoProcessor(
        size={"shortest_edge": FRAME_PIXELS, "longest_edge": frames * FRAME_PIXELS},
        fps=2,
        min_frames=4,
        max_frames=frames,
        cap_pixels_per_frame=True,
        max_video_tokens=1,
        **common,
    )
    return Qwen3VLProcessor(
        image_processor=image,
        tokenizer=build_tokenizer(),
        video_processor=video,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    role: Role, tokenizer: Qwen2Tokenizer, seed: int, family: Architecture = QWEN3_VL
) -> Any:
    """An untrained model in fp32, weights drawn from `seed`; of `qwen3_vl`, or of a family whose
    config has the same fields (`qwen3_vl_moe`)."""
    import torch
    from transformers import GenerationConfig

    size = SIZES[role]
    token = tokenizer.convert_tokens_to_ids
    third = size.head_dim // 2 // 3
    model_class = family.load_class()
    config = model_class.config_class(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "head_dim": size.head_dim,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [size.head_dim // 2 - 2 * third, third, third],
                "mrope_interleaved": True,
            },
            "pad_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "tie_word_embeddings": True,
            "initializer_range": INITIALIZER_RANGE,
            **(_experts(size) if family.experts else {}),
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_mlp,
            "num_heads": size.vision_heads,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": 4,
            "deepstack_visual_indexes": [0],
            "initializer_range": INITIALIZER_RANGE,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = model_class(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")],
        pad_token_id=token("<|endoftext|>"),
    )
    return model


def _experts(size: ModelSize) -> dict[str, object]:
    """Four, of which a token asks two, which do as much as the dense layer."""
    return {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": size.mlp // 2,
    }


def save_model(model: Any, processor: Qwen3VLProcessor, folder: Path | str) -> None:
    """Writes a loadable checkpoint folder: bf16 safetensors, configs, tokenizer, processor."""
    import copy

    import torch

    from opd_core.model.checkpoint import save_checkpoint

    save_checkpoint(copy.deepcopy(model).to(torch.bfloat16), Path(folder))
    processor.save_pretrained(folder)
    give_umask_modes(Path(folder))


def parameters(model: Any) -> int:
    """How many numbers the model holds, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())
