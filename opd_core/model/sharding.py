"""One model over several devices: each holds a part of every weight (FSDP2), and gathers a layer's
when it runs that layer.

A tree's pass calls parts of the model (backbone, then lm_head) rather than the model: so all of it
runs within `whole_pass`, which has the weights of no layer gathered. Every rank makes the same
number of such passes. Gradients are summed over ranks, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from opd_core.model.architectures import architecture_of
from opd_core.model.ranks import Ranks

T = TypeVar("T")


def shard(model: Any, ranks: Ranks, computed_in: torch.dtype | None) -> None:
    """Leave this rank its part of every weight, on its device; alone nothing is done.

    `computed_in`: the type to which weights are cast when they are gathered; None: as they lie.
    What is frozen must be so already: the types and the gradients of a layer follow from it.
    """
    if ranks.mesh is None:
        return
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = MixedPrecisionPolicy(param_dtype=computed_in, reduce_dtype=torch.float32)
    family = architecture_of(model.config)
    units = [*family.module(model, family.layers), family.module(model, family.vision), model]
    for unit in units:
        fully_shard(unit, mesh=ranks.mesh, mp_policy=policy)
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            # The loss is over the tokens of all ranks already. Gloo knows no other way to sum.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
    model.whole_pass = MethodType(lambda _, work: work(), model)
    register_fsdp_forward_method(model, "whole_pass")


def whole_pass(model: nn.Module, work: Callable[[], T]) -> T:
    """`work`, which runs parts of `model`. Of a sharded one a tensor with a gradient is what it
    gives, or the first of a tuple."""
    run: Callable[[Callable[[], T]], T] | None = getattr(model, "whole_pass", None)
    return work() if run is None else run(work)


def own_part(weight: Tensor) -> Tensor:
    """What of a weight lies in this process: all of one that is not sharded."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def gathered(weight: Tensor, wanted: bool = True) -> Tensor:
    """All of a weight, in the memory of the CPU where it is sharded; nothing where it is not
    `wanted`. Every rank takes part."""
    if not isinstance(weight, DTensor):
        return weight
    whole = weight.full_tensor()
    return whole.cpu() if wanted else whole.new_empty(0)


def cut_as(whole: Tensor, weight: Tensor) -> Tensor:
    """`whole`, which every rank has, sharded as `weight` is, on its device."""
    if not isinstance(weight, DTensor):
        return whole
    rows, mesh = len(weight.to_local()), weight.device_mesh
    begin = mesh.get_local_rank() * -(-len(whole) // mesh.size())
    own = whole[begin : begin + rows].to(weight.device, copy=True)
    return DTensor.from_local(
        own, mesh, weight.placements, shape=weight.shape, stride=weight.stride()
    )


def gathered_state(state: Mapping[str, Any], wanted: bool) -> dict[str, Any]:
    """The state of an optimiser of sharded weights, as that of one of whole weights."""
    moments = {
        at: {
            name: gathered(value, wanted) if isinstance(value, Tensor) else value
            for name, value in of_weight.items()
        }
        for at, of_weight in state["state"].items()
    }
    return {**state, "state": moments}
