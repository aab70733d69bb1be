"""Whether an engine holds the weights of a checkpoint folder.

vLLM fuses q, k, v and gate, up, pads embeddings, and on CPU keeps only a packed form of matrices; a
checkpoint read wrongly still answers, only worse. So what was loaded is compared with the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def compare(model: Any, folder: Path) -> tuple[dict[str, int], str | None]:
    """(tensors compared by `vision` and `language`, the first that differs or None).

    All but the layers between the first and the last of each stack; those that tensor parallelism
    has cut are left out. `model` is vLLM's.
    """
    loaded = dict(model.named_parameters())
    counts = {"vision": 0, "language": 0}
    for name, tensor in _chosen_tensors(folder):
        found = _find(name, tensor.shape, loaded, model)
        if found is None or found.shape != tensor.shape:
            continue
        if not torch.equal(tensor.to(found.dtype), found.cpu()):
            difference = float((tensor.float() - found.cpu().float()).abs().max())
            return counts, f"{name} differs by up to {difference:.3g}"
        counts["vision" if "visual." in name else "language"] += 1
    return counts, None


def _chosen_tensors(folder: Path) -> Iterable[tuple[str, Tensor]]:
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    names: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            names.update(dict.fromkeys(opened.keys(), file))
    wanted = _first_and_last(list(names))
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in wanted:
                if names[name] == file:
                    yield name, opened.get_tensor(name)


def _first_and_last(names: Sequence[str]) -> list[str]:
    """Without the layers between the first and the last of each stack."""
    layers: dict[str, set[int]] = {}
    where: dict[str, tuple[str, int]] = {}
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                where[name] = (".".join(parts[:i]), int(part))
                layers.setdefault(where[name][0], set()).add(int(part))
                break
    return [
        name
        for name in names
        if name not in where
        or where[name][1] in (min(layers[where[name][0]]), max(layers[where[name][0]]))
    ]


def _find(name: str, shape: torch.Size, loaded: dict[str, Tensor], model: Any) -> Tensor | None:
    """Where the model keeps a checkpoint's tensor; None where it has no such, or a cut one."""
    for old, new in model.hf_to_vllm_mapper.orig_to_new_prefix.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    rows = shape[0]
    found = _read(name, shape, loaded, model)
    if found is not None:
        padded = "embed_tokens" in name or "lm_head" in name
        return found[:rows] if padded or len(found) == rows else None
    for fused, parts in model.packed_modules_mapping.items():
        for at, part in enumerate(parts):
            if f".{part}." not in name:
                continue
            both = _read(name.replace(f".{part}.", f".{fused}."), shape, loaded, model)
            if both is None or not len(both):
                continue
            if at == 0:
                return both[:rows]
            # The middle one of q, k, v: v is as large as k.
            start = len(both) - rows * (len(parts) - at)
            return both[start : start + rows]
    return None


def _read(name: str, shape: torch.Size, loaded: dict[str, Tensor], model: Any) -> Tensor | None:
    module, _, leaf = name.rpartition(".")
    if name not in loaded:
        module += ".base_layer"  # under an adapter
        name = f"{module}.{leaf}"
    found = loaded.get(name)
    if found is None or found.numel():
        return found
    # On CPU only the packed form of a matrix is kept: multiply it with one.
    layer = model.get_submodule(module)
    one = torch.eye(shape[1], dtype=found.dtype, device=found.device)
    result: Tensor = layer.quant_method.apply(layer, one).T
    return result
