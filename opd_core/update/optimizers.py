"""The optimisers that a config can name: AdamW with moments in 32, 8 or 4 bits.

The low-bit ones are torchao's. They work on float32 weights here, whatever the trained weights lie
in (`stepping.py`), and hold moments of fewer than 4,096 numbers in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from opd_core.config.sections import UpdateSection


def make_optimizer(
    settings: UpdateSection, weights: Iterable[nn.Parameter], fused: bool | None = None
) -> torch.optim.Optimizer:
    """The optimiser that `update.optimizer` names, for float32 weights.

    `fused`: torch's AdamW in one pass over the memory, within a last bit of the other.
    """
    given: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": settings.adam_betas,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(list(weights), **given, fused=fused)
    from torchao.optim import AdamW4bit, AdamW8bit

    kind = {"adamw_8bit": AdamW8bit, "adamw_4bit": AdamW4bit}[settings.optimizer]
    made: torch.optim.Optimizer = kind(list(weights), **given)
    return made


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's compiled step takes it as an input
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def as_written(settings: UpdateSection, device: torch.device) -> AbstractContextManager[object]:
    """Around a step: on a CPU torchao's runs as it is written. Compiled, the first one would take
    half a minute and a C++ compiler."""
    if settings.optimizer == "adamw" or device.type != "cpu":
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
