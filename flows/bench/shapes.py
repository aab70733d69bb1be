"""Shapes of released models, and a small one for the CPU; `drawn.py` fills them."""

from __future__ import annotations

from flows.bench.drawn import Shape
from opd_core.plan.published import PUBLISHED


def _published(name: str) -> Shape:
    content = PUBLISHED[name]
    text, vision = content["text_config"], content["vision_config"]
    assert isinstance(text, dict) and isinstance(vision, dict)
    return Shape(name, text, vision, bool(content["tie_word_embeddings"]))


QWEN3_VL_2B, QWEN3_VL_8B, QWEN3_VL_32B = map(
    _published, ("Qwen3-VL-2B", "Qwen3-VL-8B", "Qwen3-VL-32B")
)
SMALL = Shape(
    "small, on the CPU",
    {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
     "max_position_embeddings": 262_144,
     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}},
    {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
     "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
)  # fmt: skip
