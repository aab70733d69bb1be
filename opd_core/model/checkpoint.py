"""Opens a checkpoint folder, and refuses to where the model would not be the folder's.

transformers fills a weight that is missing with random numbers, leaves one that it does not know
aside, and does not apply an adapter whose keys fit no layer; it says so in a log and goes on. Here
each of these is a `VideoOPDError`. `check_checkpoint` finds them from headers alone, in the very
code that loads, on torch's `meta` device: before anything is paid for, whatever the size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from opd_core.adapter_folder import ADAPTER_CONFIG, base_folder, is_adapter
from opd_core.extensions import Quantise
from opd_core.model.architectures import architecture_in, architecture_of
from opd_core.model.kept import kept_while_untouched
from opd_core.model.lm_head import two_heads
from opd_core.model.model_config import opened_config
from opd_core.model.quantised import quantise
from opd_core.model.weight_files import StoredTensor, stored_tensors
from opd_core.types import VideoOPDError


def check_checkpoint(folder: Path) -> None:
    """Raises `VideoOPDError` unless a full checkpoint, or an adapter and its base, holds every
    weight of its model in its shape and no other. Reads headers only; a full checkpoint that was
    found whole is not looked at again by this process while its files are the same."""
    if is_adapter(folder):
        _open(folder, "float32", "meta")
    else:
        _check_full(folder)


@partial(kept_while_untouched, reads_weights=True)
def _check_full(folder: Path) -> None:
    _open_full(folder, "float32", "meta", stored_tensors(folder))


def open_checkpoint(
    folder: Path, dtype: str, device: torch.device | str = "cpu", quantised: Quantise = "none"
) -> Any:
    """A full checkpoint or PEFT adapter as a model on `device`; every weight is the folder's, as
    `dtype` and then `quantised` round it.

    Raises as `check_checkpoint`, and for weights that are not finite.
    """
    model = _open(folder, dtype, None)
    if quantised == "none":
        model = model.to(device)
    refuse_not_finite(folder, model)
    _refuse_two_heads(folder, model)
    quantise(model, quantised, device)  # a layer at a time: the whole may not fit on the device
    return model.to(device)


def save_checkpoint(model: Any, folder: Path) -> None:
    """Writes a model's weights (with an adapter: that alone) and its config, in the form in which
    its family is published."""
    experts = architecture_of(model.config).experts
    if experts is None or not experts.published_transposed or _adapted(model):
        model.save_pretrained(folder)
        return
    # transformers reads both forms of fused experts, tells them apart by their shapes, and writes
    # its own only; vLLM reads the published one only. (The views are copied shard by shard.)
    state = {
        name: tensor.transpose(1, 2) if experts.holds(name) and _tells_its_form(tensor) else tensor
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state, save_original_format=False)


def _adapted(model: Any) -> bool:
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def _tells_its_form(experts_EIO: Any) -> bool:
    """Nobody can tell whether a square matrix lies transposed; transformers takes it as it is."""
    return bool(experts_EIO.shape[1] != experts_EIO.shape[2])


def refuse_not_finite(folder: Path, model: Any) -> None:
    """Raises `VideoOPDError` naming the weights of `model`, read from `folder`, that are NaN or
    infinite."""
    bad = [n for n, tensor in model.named_parameters() if not torch.isfinite(tensor.detach()).all()]
    if bad:
        raise VideoOPDError(
            f"{folder} has weights that are NaN or infinite: {_names(bad)}; restore it from a copy "
            "that was saved whole"
        )


def _open(folder: Path, dtype: str, device: str | None) -> Any:
    stored = stored_tensors(folder)
    if not is_adapter(folder):
        return _open_full(folder, dtype, device, stored)
    base = base_folder(folder)
    model = _open_full(base, dtype, device, stored_tensors(base))
    with _quiet(), _told(folder, "adapter"):
        info = model.load_adapter(str(folder), ignore_mismatched_sizes=True)
    layers = f"the layers that {ADAPTER_CONFIG} configures on {base}"
    _refuse(folder, info.to_dict(), layers, f"give the adapter's own base in {ADAPTER_CONFIG}")
    return model


def _open_full(
    folder: Path, dtype: str, device: str | None, stored: dict[str, StoredTensor]
) -> Any:
    from transformers import AutoModelForImageTextToText

    architecture_in(folder)  # what has no record could be loaded, and then not be used
    _refuse_quantised(folder, stored)
    with _quiet(), _told(folder, "checkpoint"):
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=opened_config(folder),
            dtype=getattr(torch, dtype),
            local_files_only=True,
            device_map=device,
            ignore_mismatched_sizes=True,  # so that they are listed like the others
            output_loading_info=True,
        )
    _refuse(folder, info, "the model that its config.json describes",
            "copy or download the checkpoint again, or correct config.json")  # fmt: skip
    return model


def _refuse(folder: Path, info: dict[str, Any], model: str, fix: str) -> None:
    missing = _names(info["missing_keys"])
    unexpected = _names(info["unexpected_keys"])
    mismatched = _names(f"{name} ({_shape(stored)} in the file, {_shape(wanted)} in the model)"
                        for name, stored, wanted in info["mismatched_keys"])  # fmt: skip
    wrong = [
        f"{what} {names}"
        for what, names in (
            ("lacks", missing),
            ("has unknown", unexpected),
            ("has in another shape", mismatched),
        )
        if names
    ]
    if info["error_msgs"]:
        wrong.append(f"cannot be read: {str(info['error_msgs'][0]).splitlines()[0]}")
    if wrong:
        raise VideoOPDError(
            f"{folder} does not hold the weights of {model}: it {'; it '.join(wrong)}; {fix}"
        )


def _names(keys: Iterable[str], shown: int = 3) -> str:
    """`a, b, c and 9 more (12 weights)`; empty for none."""
    names = sorted(keys)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    count = f" ({len(names)} weight{'s' if len(names) > 1 else ''})"
    return f"{', '.join(names[:shown])}{more}{count}" if names else ""


def _shape(size: Iterable[int]) -> str:
    return "x".join(map(str, size)) or "a number"


def _refuse_quantised(folder: Path, stored: dict[str, StoredTensor]) -> None:
    config = json.loads((folder / "config.json").read_text())
    kinds = sorted({t.dtype for t in stored.values()} - {"F64", "F32", "F16", "BF16"})
    if "quantization_config" in config or kinds:
        holds = f"weights of {kinds[0]}" if kinds else "a quantization_config"
        raise VideoOPDError(
            f"{folder} is quantised ({holds}), and is not trained or scored with; give the "
            "checkpoint in float32, bfloat16 or float16 (a teacher's is made smaller by "
            "teacher.quantise)"
        )


def _refuse_two_heads(folder: Path, model: Any) -> None:
    """transformers does not tie a saved head that differs, whatever the config says."""
    head = model.get_output_embeddings()
    tied = head is None or head.weight is model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and not tied:
        raise two_heads(folder, architecture_of(model.config))


@contextmanager
def _told(folder: Path, kind: str) -> Iterator[None]:
    """What transformers and PEFT raise for a folder that is none, as one sentence."""
    from huggingface_hub.errors import StrictDataclassError  # a value in config.json

    kinds = (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError)
    try:
        yield
    except kinds as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise VideoOPDError(
            f"{folder} is no loadable {kind} ({lines[0]}); give a folder with config.json and "
            "safetensors weights"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what transformers would log of these keys: it is told in one sentence."""
    logger = logging.getLogger("transformers")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)
