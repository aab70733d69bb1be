"""Shapes of released models, and a small one for the CPU; `drawn.py` fills them."""

from __future__ import annotations

from flows.bench.drawn import Shape

_TEXT = {
    "vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8,
    "max_position_embeddings": 262_144,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
    },
}  # fmt: skip
QWEN3_VL_2B = Shape(
    "Qwen3-VL-2B",
    {**_TEXT, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
     "num_attention_heads": 16},
    {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
     "out_hidden_size": 2048, "deepstack_visual_indexes": [5, 11, 17]},
    tied=True,
)  # fmt: skip
QWEN3_VL_8B = Shape(
    "Qwen3-VL-8B",
    {**_TEXT, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
     "num_attention_heads": 32},
    {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
     "out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]},
)  # fmt: skip
QWEN3_VL_32B = Shape(
    "Qwen3-VL-32B",
    {**_TEXT, "hidden_size": 5120, "intermediate_size": 25_600, "num_hidden_layers": 64,
     "num_attention_heads": 64},
    {**QWEN3_VL_8B.vision, "out_hidden_size": 5120},
)  # fmt: skip
SMALL = Shape(
    "small, on the CPU",
    {**_TEXT, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}},
    {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
     "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
)  # fmt: skip
