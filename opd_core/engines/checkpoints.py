"""What an engine that reads checkpoint folders itself needs to know of ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from opd_core.checkpoint import (
    base_folder,
    check_checkpoint,
    open_checkpoint,
    refuse_not_finite,
    save_checkpoint,
)
from opd_core.weight_files import ADAPTER_CONFIG


def end_token_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """As `engines.hf.end_token_ids`, from the folder's files."""
    from transformers import AutoConfig, GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        generation = GenerationConfig.from_model_config(
            AutoConfig.from_pretrained(folder, local_files_only=True)
        )
    ids = {tokenizer.eos_token_id}
    configured = generation.eos_token_id
    ids.update(configured if isinstance(configured, list) else [configured])
    return frozenset(i for i in ids if i is not None)


def merge_adapter(adapter: Path, target: Path, dtype: str) -> Path:
    """Write base and adapter, added up in float32, as a full checkpoint into `target`."""
    from peft import PeftModel

    check_checkpoint(adapter)  # PEFT says of keys that fit no layer in a warning only
    base = open_checkpoint(base_folder(adapter), "float32")
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    merged = merged.to(getattr(torch, dtype))
    refuse_not_finite(adapter, merged)
    save_checkpoint(merged, target)
    for file in adapter.iterdir():
        weights = file.suffix in (".safetensors", ".pt", ".bin") or file.name == ADAPTER_CONFIG
        if file.is_file() and not weights and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    return target
