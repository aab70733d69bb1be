"""What the tests of the gate and of vLLM share: models drawn from a seed, configs, examples."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from opd_core.config import Config, load_config
from opd_core.types import GroundingExample
from tests.tiny_config import as_toml, tiny_settings


def make_model(folder: Path, role: str = "student", seed: int = 0) -> Path:
    """An untrained checkpoint that would like nothing better than to say a vision placeholder.

    Its embeddings, which are its lm_head too, of these tokens are twenty times as large as others.
    """
    import torch

    model, processor = _parts(role, seed)
    from opd_core.tinyworld.models import save_model
    from opd_core.vocabulary import VISION_TOKENS

    if not folder.exists():
        with torch.no_grad():
            for token in VISION_TOKENS:
                row = processor.tokenizer.convert_tokens_to_ids(token)
                model.model.language_model.embed_tokens.weight[row] *= 20
        save_model(model, processor, folder)
    return folder


def _parts(role: str, seed: int) -> tuple[Any, Any]:
    from opd_core.tinyworld.models import build_model

    processor = _processor()
    return build_model(role, processor.tokenizer, seed), processor  # type: ignore[arg-type]


@lru_cache
def _processor() -> Any:
    from opd_core import torchvision_guard

    torchvision_guard.install()
    from opd_core.tinyworld.models import build_processor

    return build_processor()


def make_config(folder: Path, world: Any, overrides: dict[str, Any] | None = None) -> Config:
    settings = tiny_settings(folder / "run", world) | {
        "student.path": str(make_model(folder / "student")),
        "teacher.path": str(make_model(folder / "teacher", "teacher", 1)),
        "rollout.max_new_tokens": 12,
        "evaluate.max_new_tokens": 12,
        "video.max_video_tokens": 8192,
        "vllm.kv_cache_gib": 0.125,
    }
    path = folder / "tiny.toml"
    path.write_text(as_toml(settings | (overrides or {})))
    return load_config(path)


def read_examples(config: Config, count: int) -> list[GroundingExample]:
    """The first of the training split, those of one video next to each other."""
    from opd_core.annotations import read_timelens

    items = read_timelens(config.data.train, "train")
    return [item for item in items if isinstance(item, GroundingExample)][:count]
