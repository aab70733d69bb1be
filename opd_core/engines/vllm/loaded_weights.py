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
from torch.nn import functional as F

from opd_core.model.architectures import Architecture, Experts, architecture_in
from opd_core.model.lm_head import weight_names

EXPERTS_DIFFER = {torch.float32: 1e-4}
"""Share by which what an expert answers may differ, of the norm of the answer: rounding. In lower
precision `EXPERTS_DIFFER_LOW`."""
EXPERTS_DIFFER_LOW = 0.03
EXPERT_INPUTS = 8


def compare(model: Any, folder: Path) -> tuple[dict[str, int], str | None]:
    """(tensors compared by `vision` and `language`, the first that differs or None).

    All but the layers between the first and the last of each stack; those that tensor parallelism
    has cut are left out. Fused experts are asked instead, because every kernel keeps them in a form
    of its own. `model` is vLLM's.
    """
    family = architecture_in(folder)
    loaded = dict(model.named_parameters())
    counts = {"vision": 0, "language": 0}
    experts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _chosen_tensors(folder):
        if family.experts is not None and family.experts.holds(name):
            module, _, leaf = name.rpartition(".")
            experts.setdefault(module, {})[leaf] = tensor
            continue
        served = _find(name, tensor.shape, loaded, model, family)
        if served is None or served.shape != tensor.shape:
            continue
        if not torch.equal(tensor.to(served.dtype), served.cpu()):
            difference = float((tensor.float() - served.cpu().float()).abs().max())
            return counts, f"{name} differs by up to {difference:.3g}"
        counts["vision" if family.is_vision(name) else "language"] += 1
    for module, stored in experts.items():
        assert family.experts is not None
        measured = _experts_differ(module, stored, family.experts, model)
        if measured is None:
            continue
        dtype, share = measured
        if not share <= EXPERTS_DIFFER.get(dtype, EXPERTS_DIFFER_LOW):
            return counts, f"{module} answers otherwise, by {share:.3g} of its answer"
        counts["language"] += len(stored)
    return counts, None


def _experts_differ(
    module: str, stored: dict[str, Tensor], experts: Experts, model: Any
) -> tuple[torch.dtype, float] | None:
    """(precision, the largest share by which an expert's answers to some inputs are not those of
    the stored weights); None where tensor or expert parallelism has cut them."""
    layer = model.get_submodule(_renamed(module, model)).routed_experts
    gate_up_EIO, down_EIO = stored[experts.gate_up], stored[experts.down]
    if experts.published_transposed:
        # A square one lies as transformers reads it, which vLLM does not know.
        gate_up_EIO, down_EIO = (
            tensor.transpose(1, 2) if tensor.shape[1] != tensor.shape[2] else tensor
            for tensor in (gate_up_EIO, down_EIO)
        )
    if layer.moe_config.intermediate_size_per_partition != down_EIO.shape[2] or (
        layer.moe_config.num_local_experts != len(down_EIO)
    ):
        return None
    weight = layer.w13_weight
    generator = torch.Generator().manual_seed(0)
    input_ND = torch.randn(EXPERT_INPUTS, gate_up_EIO.shape[2], generator=generator)
    asked_ND = input_ND.to(weight.device, weight.dtype)
    one_N1 = torch.ones(EXPERT_INPUTS, 1, device=weight.device)
    worst = 0.0
    for expert, (gate_up_IO, down_IO) in enumerate(zip(gate_up_EIO, down_EIO, strict=True)):
        gate_NI, up_NI = F.linear(asked_ND.float().cpu(), gate_up_IO.float()).chunk(2, dim=1)
        expected_ND = F.linear(F.silu(gate_NI) * up_NI, down_IO.float())
        answer_ND = layer.quant_method.apply(
            layer=layer,
            x=asked_ND.clone(),
            topk_weights=one_N1.clone(),
            topk_ids=torch.full_like(one_N1, expert, dtype=torch.int32),
            shared_experts=None,
            shared_experts_input=None,
        )
        off = (answer_ND.float().cpu() - expected_ND).norm() / expected_ND.norm()
        worst = max(worst, float(off.nan_to_num(float("inf"))))
    return weight.dtype, worst


def _renamed(name: str, model: Any) -> str:
    """A checkpoint's name as vLLM's."""
    for old, new in model.hf_to_vllm_mapper.orig_to_new_prefix.items():
        if name.startswith(old):
            return str(new) + name.removeprefix(old)
    return name


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
    """Leave out the layers between the first and the last of each stack."""
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


def _find(
    name: str, shape: torch.Size, loaded: dict[str, Tensor], model: Any, family: Architecture
) -> Tensor | None:
    """Find a checkpoint's tensor in the model; None where it has no such, or a cut one."""
    padded = name.endswith(weight_names(family))
    name = _renamed(name, model)
    rows = shape[0]
    whole = _read(name, shape, loaded, model)
    if whole is not None:
        return whole[:rows] if padded or len(whole) == rows else None
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
    parameter = loaded.get(name)
    if parameter is None or parameter.numel():
        return parameter
    # On CPU only the packed form of a matrix is kept: multiply it with one.
    layer = model.get_submodule(module)
    one = torch.eye(shape[1], dtype=parameter.dtype, device=parameter.device)
    result: Tensor = layer.quant_method.apply(layer, one).T
    return result
