"""Which weights of a model an update trains: all, all but the vision tower, or an adapter's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from opd_core.adapter_folder import is_adapter
from opd_core.config.load import Config
from opd_core.model.architectures import Architecture, architecture_of


def choose_trainable(model: Any, config: Config, folder: Path) -> dict[str, nn.Parameter]:
    """Freeze what the config freezes, add or continue the LoRA adapter; name -> trained weight."""
    settings = config.update
    family = architecture_of(model.config)
    adapted = is_adapter(folder)
    if settings.lora is not None:
        if adapted:
            _set_dropout(model, settings.lora.dropout)
        else:
            from peft import LoraConfig

            model.add_adapter(
                LoraConfig(
                    r=settings.lora.rank,
                    lora_alpha=settings.lora.alpha,
                    lora_dropout=settings.lora.dropout,
                    target_modules=language_modules(
                        model, family, settings.lora.target_modules or family.lora_modules
                    ),
                    base_model_name_or_path=str(folder),
                )
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif settings.freeze_vision:
        family.freeze_vision(model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _set_dropout(model: Any, share: float) -> None:
    """The adapter was loaded with the dropout that it was saved with."""
    from peft.tuners.lora import LoraLayer

    for described in model.peft_config.values():
        described.lora_dropout = share
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_dropout:
                module.lora_dropout[name] = nn.Dropout(share) if share else nn.Identity()


def language_modules(model: Any, family: Architecture, names: Sequence[str]) -> list[str]:
    """The full names of the language model's layers: the vision tower stays as it is."""
    linear = {
        n: n.rsplit(".", 1)[-1]
        for n, module in model.named_modules()
        if family.is_text(n) and isinstance(module, nn.Linear)
    }
    family.refuse_lora_of(set(names) - set(linear.values()), set(linear.values()))
    return [n for n, last in linear.items() if last in names]
