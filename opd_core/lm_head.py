"""One tensor of a checkpoint: the matrix that turns last hidden states into logits.

A teacher's hidden states and this matrix are its whole distribution, so that none of its other
weights have to be there.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from opd_core.types import VideoOPDError

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"


def load_lm_head(folder: Path, dtype: str, device: torch.device | str = "cpu") -> Tensor:
    """[V, D] in `dtype`: `lm_head.weight`, or the text embedding where the two are tied.

    Reads that tensor and no other. A PEFT adapter has the head of its base. Raises `VideoOPDError`
    where there is none.
    """
    from safetensors import safe_open

    from opd_core.engines.checkpoints import ADAPTER_CONFIG, base_folder

    if (folder / ADAPTER_CONFIG).is_file():
        folder = base_folder(folder)
    found: dict[str, tuple[Path, str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in list(opened.keys()):
                for kind in (HEAD, EMBEDDING):
                    if (name == kind or name.endswith(f".{kind}")) and "visual" not in name:
                        found[kind] = (file, name)
    if not found:
        raise VideoOPDError(
            f"{folder} has neither {HEAD} nor {EMBEDDING} in its *.safetensors; give the "
            "checkpoint folder of the teacher that scored"
        )
    # A checkpoint with a head of its own has it saved; one without is tied to its embedding.
    file, name = found.get(HEAD) or found[EMBEDDING]
    with safe_open(file, "pt") as opened:
        weight: Tensor = opened.get_tensor(name)
    return weight.to(device=device, dtype=getattr(torch, dtype))
