"""What lies in memory while a policy is trained, where and in which type, as the config says.

| update.weights | update.offload | trained weights and gradients | float32 weights and moments |
|---|---|---|---|
| float32 | false | float32; the forward pass is autocast to student.dtype | are those weights |
| bfloat16 | false | bfloat16, rounded at random after each step | no weights; moments beside them |
| float32 | true | student.dtype | in the memory of the CPU |

What is frozen (vision tower, the base under LoRA) lies in student.dtype, as the sampler has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from opd_core.adapter_folder import is_adapter
from opd_core.config.load import Config
from opd_core.model.weight_files import stored_tensors


@dataclass(frozen=True, slots=True)
class InMemory:
    trained: torch.dtype
    """Of the trained weights and their gradients on the device."""
    served: torch.dtype
    """student.dtype: of what is frozen, of the policy's folder, and of the forward pass."""
    float32_weights: bool
    """Whether the trained weights are kept in float32 too, wherever that is."""
    on_the_cpu: bool
    """Whether those and the optimiser's state lie in the memory of the CPU."""

    @classmethod
    def of(cls, config: Config) -> InMemory:
        update, served = config.update, getattr(torch, config.student.dtype)
        return cls(
            trained=served if update.offload else getattr(torch, update.weights),
            served=served,
            float32_weights=update.weights == "float32",
            on_the_cpu=update.offload,
        )

    @property
    def autocast(self) -> torch.dtype | None:
        """The type to which the forward pass is cast; None: the weights' own is it."""
        return None if self.trained == self.served else self.served

    @property
    def rounded(self) -> bool:
        """Whether float32 weights say more than a folder in `served` can."""
        return self.float32_weights and self.served != torch.float32

    def opened_as(self, folder: Path, adapts: bool) -> str:
        """The type in which a policy's folder is opened: float32 where it may hold weights in it
        that are trained on so; an adapter does in runs of older programs."""
        exact = self.float32_weights and (not adapts or _has_float32_adapter(folder))
        return "float32" if exact else str(self.served).removeprefix("torch.")

    def lay_out(
        self, model: nn.Module, trained: Mapping[str, nn.Parameter], device: torch.device
    ) -> dict[str, Tensor]:
        """Give each weight of `model`, on the CPU so far, its type and move it to `device`; name ->
        float32 weight in the memory of the CPU, where those are kept there."""
        kept = {
            name: weight.detach().to(torch.float32, copy=True)
            for name, weight in trained.items()
            if self.on_the_cpu
        }
        for weight in model.parameters():
            weight.data = weight.data.to(self.trained if weight.requires_grad else self.served)
        model.to(device)
        return kept

    def place(self, device: torch.device) -> torch.device:
        """Where the optimiser's state lies."""
        return torch.device("cpu") if self.on_the_cpu else device


def _has_float32_adapter(folder: Path) -> bool:
    return is_adapter(folder) and any(t.dtype == "F32" for t in stored_tensors(folder).values())
