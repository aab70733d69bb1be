"""Which files of a checkpoint folder are its weights, and which tensors are in them.

transformers takes `model.safetensors` before an index, vLLM the index before it, and a hash every
`*.safetensors` there is: a folder is taken only where all of them mean the same tensors. Headers
alone are read, so it costs milliseconds however large the weights are.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core.adapter_folder import ADAPTER_CONFIG, is_adapter
from opd_core.types import VideoOPDError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    file: Path
    dtype: str
    """As safetensors names it: `F32`, `BF16`, ..."""
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """name -> what is stored, of all the weights of a folder (of an adapter: its own).

    Raises `VideoOPDError` naming the folder where there are none, where a file is missing, cut
    short or left over, and where the index names what no file holds.
    """
    if not folder.is_dir():
        raise VideoOPDError(f"there is no model folder at {folder}; correct the path in the config")
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        stored |= header(file)
    for name, shard in _index(folder).items():
        if name not in stored or stored[name].file.name != shard:
            raise VideoOPDError(
                f"{folder / INDEX} names a weight {name} in {shard}, which does not hold it; copy "
                "or download the checkpoint again"
            )
    return stored


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a loader reads, by name. Raises as `stored_tensors`."""
    there = {path.name for path in folder.glob("*.safetensors")}
    if not there:
        older = sorted(p.name for kind in ("*.bin", "*.pth", "*.ckpt") for p in folder.glob(kind))
        if older:
            raise VideoOPDError(
                f"{folder} has its weights in {older[0]}, an older format that is not read; load "
                "it with transformers and save it with save_pretrained, which writes safetensors"
            )
        raise VideoOPDError(
            f"{folder} holds no *.safetensors; give the folder of a Hugging Face checkpoint saved"
            " as safetensors"
        )
    named_by, wanted = SINGLE, {SINGLE}
    if is_adapter(folder):
        named_by, wanted = ADAPTER_CONFIG, {ADAPTER_WEIGHTS}
    elif (folder / INDEX).is_file():
        named_by, wanted = INDEX, set(_index(folder).values())
    missing, left_over = sorted(wanted - there), sorted(there - wanted)
    if missing:
        raise VideoOPDError(
            f"{folder} lacks {_some(missing, 'files')} that its weights should be in; copy or "
            "download the checkpoint again"
        )
    if left_over:
        raise VideoOPDError(
            f"{folder} holds {_some(left_over, 'files')} beside the weights that {named_by} stands "
            "for, and programs differ in what they would load; remove what is stale"
        )
    return [folder / name for name in sorted(wanted)]


def _index(folder: Path) -> Mapping[str, str]:
    """Weight -> file; empty where the weights are in one file."""
    path = folder / INDEX
    if is_adapter(folder) or not path.is_file():
        return {}
    try:
        named = json.loads(path.read_text())["weight_map"]
        return {str(name): str(file) for name, file in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VideoOPDError(
            f"{path} is no readable index ({type(error).__name__}: {error}); copy or download the "
            "checkpoint again"
        ) from None


def header(path: Path) -> dict[str, StoredTensor]:
    """What one safetensors file holds. Raises `VideoOPDError` unless it is whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("its header ends too early")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {n: StoredTensor(path, e["dtype"], tuple(e["shape"])) for n, e in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"it has {size:,} bytes and should have {8 + length + end:,}")
    except OSError as error:
        raise VideoOPDError(
            f"{path} cannot be read ({error.strerror}); change the permissions"
        ) from None
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise VideoOPDError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from None
    return tensors


def _some(names: list[str], what: str) -> str:
    """`a.safetensors`, or `a.safetensors and 2 more files`."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more {what}"
