"""What an engine that reads checkpoint folders itself needs to know of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from opd_core.types import VideoOPDError

ADAPTER_CONFIG = "adapter_config.json"


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


def base_folder(adapter: Path) -> Path:
    """The checkpoint that a PEFT adapter was trained on."""
    base = Path(json.loads((adapter / ADAPTER_CONFIG).read_text())["base_model_name_or_path"])
    if not base.is_dir():
        raise VideoOPDError(
            f"the adapter in {adapter} was trained on {base}, which is not there; restore it, or "
            f"correct base_model_name_or_path in its {ADAPTER_CONFIG}"
        )
    return base


def merge_adapter(adapter: Path, target: Path, dtype: str) -> Path:
    """Write base and adapter, added up in float32, as a full checkpoint into `target`."""
    from peft import PeftModel

    from opd_core.tree_model import load_model

    model = PeftModel.from_pretrained(load_model(base_folder(adapter), "float32"), str(adapter))
    merged = model.merge_and_unload().to(getattr(torch, dtype))
    merged.save_pretrained(target)
    for file in adapter.iterdir():
        weights = file.suffix in (".safetensors", ".pt", ".bin") or file.name == ADAPTER_CONFIG
        if file.is_file() and not weights and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    return target
