"""The shapes of published models, as their config.json have them: for a plan before a download."""

from __future__ import annotations

import re

Content = dict[str, object]


def _qwen3_vl(
    hidden: int, inner: int, layers: int, heads: int, tied: bool, tower: Content
) -> Content:
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": 262_144,
            "attention_bias": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000,
                "mrope_section": [24, 20, 20],
            },
        },
        "vision_config": {
            **tower,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
            "num_position_embeddings": 2304,
        },
    }


_SMALL_TOWER: Content = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
_TOWER: Content = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}
PUBLISHED: dict[str, Content] = {
    "Qwen3-VL-2B": _qwen3_vl(2048, 6144, 28, 16, True, _SMALL_TOWER),
    "Qwen3-VL-4B": _qwen3_vl(2560, 9728, 36, 32, True, _SMALL_TOWER),
    "Qwen3-VL-8B": _qwen3_vl(4096, 12_288, 36, 32, False, _TOWER),
    "Qwen3-VL-32B": _qwen3_vl(5120, 25_600, 64, 64, False, _TOWER),
}
_TRAINED_FROM = {"TimeLens-8B": "Qwen3-VL-8B", "TimeLens2-2B": "Qwen3-VL-2B",
                 "TimeLens2-4B": "Qwen3-VL-4B", "TimeLens2-8B": "Qwen3-VL-8B"}  # fmt: skip


def published(folder: str) -> tuple[str, Content] | None:
    """The published model that a folder's name tells, and what its config.json says of its shape:
    `Qwen3-VL-8B-Instruct` is one of Qwen3-VL-8B's. None where it tells none."""
    for name in (*PUBLISHED, *_TRAINED_FROM):
        if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", folder, re.IGNORECASE):
            name = _TRAINED_FROM.get(name, name)
            return name, PUBLISHED[name]
    return None
