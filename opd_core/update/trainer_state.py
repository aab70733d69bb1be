"""What training goes on from and no sampler needs: float32 weights, and the optimiser's state.

    weights.safetensors    the trained weights, where float32 says more than the policy's folder
    optimizer.pt           the optimiser's state and how many steps it has made

A folder of them belongs to one policy. Runs of older programs have `optimizer.pt` in the policy's
own folder, whose weights are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from opd_core.model.sharding import cut_as
from opd_core.types import VideoOPDError
from opd_core.update.continuation import OPTIMIZER_FILE

WEIGHTS_FILE, RANDOM_FILE = "weights.safetensors", "random.pt"
_SERVED = "student.dtype"
_FIX = "restore it, or remove it and the optimiser begins anew"


def write_state(
    folder: Path,
    optimizer: Mapping[str, Any],
    steps_done: int,
    weights: Mapping[str, Tensor] | None,
    served: torch.dtype,
) -> None:
    """Write it into a new folder. `optimizer`: its state, whole; `steps_done`: since it began;
    `served`: the type to which `weights` are rounded in the policy's folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        whole = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(whole, folder / WEIGHTS_FILE, metadata={_SERVED: str(served)})
    save_whole({"optimizer": optimizer, "steps_done": steps_done}, folder / OPTIMIZER_FILE)


def save_whole(content: object, path: Path) -> None:
    """`torch.save`, which says of a full disk only that a stream failed: the disk is asked again,
    and its own `OSError` raised."""
    try:
        torch.save(content, path)
    except RuntimeError:
        with path.open("ab") as file:
            file.write(bytes(1 << 20))
        raise


def read_weights(folder: Path, served: torch.dtype) -> dict[str, Tensor] | None:
    """Name in the model -> trained weight, float32, on the CPU.

    None where the policy's folder has all there is: it is float32, or the sampler reads it in
    another type now, and so samples from what is in it.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_SERVED) != str(served):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise VideoOPDError(f"{path} cannot be read ({error}); {_FIX}") from None


def read_optimizer(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    shapes: Sequence[torch.Size],
    device: torch.device,
) -> int:
    """`optimizer`, of weights of these `shapes`, takes its state from `folder`; the steps it has
    made. Of sharded weights it reads its own part only: all of it is larger than a device. Raises
    `VideoOPDError` where the file cannot be read or is of other weights."""
    path = folder / OPTIMIZER_FILE
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    sharded = any(isinstance(weight, DTensor) for weight in weights)
    place = torch.device("cpu") if sharded else device
    try:
        saved = torch.load(path, map_location=place, weights_only=True, mmap=sharded)
        state, steps_done = saved["optimizer"], int(saved["steps_done"])
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, UnpicklingError) as error:
        raise VideoOPDError(
            f"{path} is no readable state of an optimiser ({type(error).__name__}); {_FIX}"
        ) from None
    count = sum(len(group["params"]) for group in state["param_groups"])
    if count != len(shapes) or any(
        moments["exp_avg"].shape != shapes[at] for at, moments in state["state"].items()
    ):
        raise VideoOPDError(
            f"{path} is the state of an optimiser of other weights than the config trains; put "
            "back the settings that it was saved with, or remove it and the optimiser begins anew"
        )
    for at, moments in state["state"].items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == shapes[at]:
                moments[name] = cut_as(value, weights[at])
            elif isinstance(value, Tensor) and sharded:
                moments[name] = value.clone()  # the file is let go of
    optimizer.load_state_dict(state)
    return steps_done


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Of torch's random numbers in this process, on the CPU and on `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def write_random(
    folder: Path, states: Sequence[Mapping[str, Tensor]], logprobs: Mapping[str, Tensor]
) -> None:
    """Write the random states of each rank, and `logprobs`, which cannot be computed again once a
    weight has moved."""
    save_whole({"states": list(states), "logprobs": dict(logprobs)}, folder / RANDOM_FILE)


def read_random(folder: Path, device: torch.device, rank: int) -> dict[str, Tensor]:
    """Go on with the random numbers of this rank, as far as there was one; the `logprobs` that
    `write_random` wrote, on `device`."""
    saved = torch.load(folder / RANDOM_FILE, map_location="cpu", weights_only=True)
    for states in saved["states"][rank : rank + 1]:
        torch.set_rng_state(states["cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], device)
    return {name: logprobs_T.to(device) for name, logprobs_T in saved["logprobs"].items()}
