"""What an engine that reads checkpoint folders itself needs to know of ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from opd_core.adapter_folder import ADAPTER_CONFIG, base_folder
from opd_core.model.architectures import architecture_in
from opd_core.model.checkpoint import (
    check_checkpoint,
    open_checkpoint,
    refuse_not_finite,
    save_checkpoint,
)
from opd_core.model.file_modes import give_umask_modes
from opd_core.model.model_config import opened_config
from opd_core.model.weight_files import stored_tensors


def generation_config(folder: Path) -> Any:
    """How the model in `folder` generates: as the folder says, or as follows from its config."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return GenerationConfig.from_model_config(opened_config(folder))


def published_form(folder: Path, target: Path) -> Path:
    """`folder`; or `target`, with the same checkpoint in it, where fused experts lie as
    transformers writes them and not as their family is published, which is all that vLLM reads."""
    from safetensors.torch import load_file, save_file

    experts = architecture_in(folder).experts
    if experts is None or not experts.published_transposed:
        return folder
    width = opened_config(folder).get_text_config().hidden_size
    turned = {
        name
        for name, stored in stored_tensors(folder).items()
        # Published, gate_up is [E, D, 2I] and down [E, I, D].
        if experts.holds(name) and stored.shape[1 if name.endswith(experts.gate_up) else 2] != width
    }
    if not turned:
        return folder
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            tensors = {
                name: tensor.transpose(1, 2).contiguous() if name in turned else tensor
                for name, tensor in load_file(file).items()
            }
            save_file(tensors, target / file.name, metadata={"format": "pt"})
        elif file.is_file():
            shutil.copyfile(file, target / file.name)
    return target


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
    give_umask_modes(target)
    return target
