"""One tensor of a checkpoint: the matrix that turns last hidden states into logits.

A teacher's hidden states and this matrix are its whole distribution, so that none of its other
weights have to be there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from opd_core.adapter_folder import base_folder, is_adapter
from opd_core.model.architectures import Architecture, architecture_in
from opd_core.model.model_config import opened_config
from opd_core.model.weight_files import StoredTensor, header
from opd_core.types import VideoOPDError


def load_lm_head(folder: Path, dtype: str, device: torch.device | str = "cpu") -> Tensor:
    """[V, D] in `dtype`: `lm_head.weight`, or the text embedding where config.json ties the two.

    Reads that tensor and no other. A PEFT adapter has the head of its base. Raises `VideoOPDError`
    where there is none, or a weight of it is not finite.
    """
    from safetensors import safe_open

    if is_adapter(folder):
        folder = base_folder(folder)
    family = architecture_in(folder)
    stored: dict[str, StoredTensor] = {}
    for file in sorted(folder.glob("*.safetensors")):  # those that are there: one is enough
        stored |= header(file)

    def read(name: str) -> Tensor:
        with safe_open(stored[name].file, "pt") as opened:
            weight: Tensor = opened.get_tensor(name)
        return weight

    head, embedding = (_find(stored, name, family) for name in weight_names(family))
    tied = _is_tied(folder)
    name = embedding if tied else head
    if name is None:
        raise VideoOPDError(
            f"{folder} has no {weight_names(family)[tied]} in its *.safetensors; give the "
            "checkpoint folder of the teacher that scored"
        )
    weight = read(name)
    if tied and head is not None and not torch.equal(read(head), weight):
        raise two_heads(folder, family)
    if not torch.isfinite(weight).all():
        raise VideoOPDError(
            f"{name} of {folder} is NaN or infinite in places; restore it from a copy that was "
            "saved whole"
        )
    return weight.to(device=device, dtype=getattr(torch, dtype))


def teacher_distribution(
    hidden_CD: Tensor, head_VD: Tensor, excluded_ids: Sequence[int], vocabulary: int
) -> Tensor:
    """Log-probabilities [C, vocabulary] in float32, -inf at the excluded ids, as in scoring.

    `vocabulary` is the number of rows of the student's head. Where the two are padded to unlike
    sizes, the rows that one of them lacks are tokens of no tokenizer, which nobody may say.
    """
    logits_CV = (hidden_CD @ head_VD.T).float()
    if (missing := vocabulary - logits_CV.shape[1]) > 0:
        logits_CV = torch.nn.functional.pad(logits_CV, (0, missing), value=float("-inf"))
    excluded = torch.tensor(excluded_ids, dtype=torch.long, device=logits_CV.device)
    logits_CV = logits_CV[:, :vocabulary].index_fill(1, excluded, float("-inf"))
    return logits_CV.log_softmax(dim=1)


def weight_names(family: Architecture) -> tuple[str, str]:
    """Names of the head and of the embedding, without what older checkpoints put before them."""
    head, embedding = (path.rsplit(".", 1)[-1] for path in (family.lm_head, family.embedding))
    return f"{head}.weight", f"{embedding}.weight"


def _find(stored: Mapping[str, StoredTensor], wanted: str, family: Architecture) -> str | None:
    names = (name for name in stored if name == wanted or name.endswith(f".{wanted}"))
    return next((name for name in names if not family.is_vision(name)), None)


def two_heads(folder: Path, family: Architecture) -> VideoOPDError:
    """transformers would take the one, vLLM the other."""
    head, _ = weight_names(family)
    return VideoOPDError(
        f"{folder} has a {head} that differs from its embedding, while its config.json says that "
        "they are one (tie_word_embeddings = true); set that to false, or remove the weight"
    )


def _is_tied(folder: Path) -> bool:
    """Whether the head is the embedding, by transformers, which knows where older checkpoints of
    each family say it."""
    try:
        return bool(opened_config(folder).tie_word_embeddings)
    except (OSError, ValueError) as error:
        raise VideoOPDError(
            f"{folder} has no readable config.json ({str(error).splitlines()[0]}); give the "
            "checkpoint folder of the teacher that scored"
        ) from None
