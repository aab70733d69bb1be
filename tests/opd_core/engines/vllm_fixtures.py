"""What the tests of the gate and of vLLM share: models drawn from a seed, configs, examples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
import pytest

from opd_core.config.load import Config, load_config
from opd_core.engines.base import Refused, Sample
from opd_core.model.architectures import ARCHITECTURES, QWEN3_VL
from opd_core.prompts.batches import EncodedExample
from opd_core.types import GroundingExample
from tests.forked import SERVER
from tests.tiny_config import as_toml, tiny_settings

NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
"""Found, not imported: that is six CPU seconds for whoever only collects the tests."""

Videos = tuple[tuple[EncodedExample, ...], ...]
Answer = TypeVar("Answer", bound=Sample)
Answers = dict[Hashable, list[Sample]]

Kind = Literal["qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl"]


def engines() -> set[int]:
    """The processes of vLLM's engines below this one. A forked one has the arguments of the server
    that it was forked off, a child of ours, which is none."""
    ours = psutil.Process()
    below = {p.pid: " ".join(p.cmdline()) for p in ours.children(recursive=True)}
    servers = {p.pid for p in ours.children() if str(SERVER) in below.get(p.pid, "")}
    return {p for p, words in below.items() if "engines.vllm.child" in words} - servers


def make_model(folder: Path, role: str = "student", seed: int = 0, kind: Kind = "qwen3_vl") -> Path:
    """An untrained checkpoint that would like nothing better than to say a vision placeholder.

    Its embeddings, which are its lm_head too, of these tokens are twenty times as large as others.
    """
    import torch

    model, processor = _parts_2_5(role, seed) if kind == "qwen2_5_vl" else _parts(role, seed, kind)
    from opd_core.tinyworld.models import save_model

    if not folder.exists():
        with torch.no_grad():
            for token in QWEN3_VL.placeholders:
                row = processor.tokenizer.convert_tokens_to_ids(token)
                model.model.language_model.embed_tokens.weight[row] *= 20
        save_model(model, processor, folder)
    return folder


def _parts(role: str, seed: int, kind: str) -> tuple[Any, Any]:
    from opd_core.tinyworld.models import build_model

    processor = _processor()
    return build_model(role, processor.tokenizer, seed, ARCHITECTURES[kind]), processor  # type: ignore[arg-type]


def _parts_2_5(role: str, seed: int) -> tuple[Any, Any]:
    """A Qwen2.5-VL with the tiny world's tokenizer: two vision tokens to each side of a frame."""
    import torch

    processor = _processor_2_5()
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token = processor.tokenizer.convert_tokens_to_ids
    width, layers = (128, 3) if role == "teacher" else (96, 2)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer), "hidden_size": width,
            "intermediate_size": 2 * width, "num_hidden_layers": layers,
            "num_attention_heads": width // 32, "num_key_value_heads": width // 32,
            "max_position_embeddings": 4096, "tie_word_embeddings": True,
            "initializer_range": 0.08, "max_window_layers": layers,
            "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"),
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6],
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2,
            "out_hidden_size": width, "patch_size": 14, "window_size": 56,
            "fullatt_block_indexes": [1], "tokens_per_second": 2, "initializer_range": 0.08,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")],
        pad_token_id=token("<|endoftext|>"),
    )
    return model, processor


@lru_cache
def _processor_2_5() -> Any:
    from opd_core import torchvision_guard

    torchvision_guard.install()
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    from opd_core.tinyworld.models import CHAT_TEMPLATE, MEAN_STD, build_tokenizer

    common = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
              "image_mean": MEAN_STD, "image_std": MEAN_STD}  # fmt: skip
    size = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **common),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False, **common),
        chat_template=CHAT_TEMPLATE,
    )


@lru_cache
def _processor() -> Any:
    from opd_core import torchvision_guard

    torchvision_guard.install()
    from opd_core.tinyworld.models import build_processor

    return build_processor()


def make_config(
    folder: Path, world: Any, overrides: dict[str, Any] | None = None, kind: Kind = "qwen3_vl"
) -> Config:
    settings = tiny_settings(folder / "run", world) | {
        "student.path": str(make_model(folder / "student", kind=kind)),
        "teacher.path": str(make_model(folder / "teacher", "teacher", 1, kind)),
        "rollout.max_new_tokens": 12,
        "evaluate.max_new_tokens": 12,
        "video.max_video_tokens": 8192,
        "vllm.kv_cache_gib": 0.125,
    }
    path = folder / "tiny.toml"
    path.write_text(as_toml(settings | (overrides or {})))
    return load_config(path)


def answered(found: Mapping[Hashable, Sequence[Answer] | Refused]) -> dict[Hashable, list[Answer]]:
    """What an engine said, of a call in which it refuses nothing."""
    refused = {key: said for key, said in found.items() if isinstance(said, Refused)}
    assert not refused, refused
    return {key: list(said) for key, said in found.items() if not isinstance(said, Refused)}


def read_examples(config: Config, count: int) -> list[GroundingExample]:
    """The first of the training split, those of one video next to each other."""
    from opd_core.annotations.timelens import read_timelens

    items = read_timelens(config.data.train, "train")
    return [item for item in items if isinstance(item, GroundingExample)][:count]
