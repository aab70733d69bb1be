"""The hub's cache (HF_HOME, HF_HUB_CACHE): what of a model is there. Never asks the network."""

from __future__ import annotations

import json
from pathlib import Path

from opd_core.hub.name import HubModel, hub_model

_ADAPTER = "adapter_config.json"
_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
_INDEX = "model.safetensors.index.json"


def cache_folder() -> Path:
    """The cache that huggingface_hub and transformers use in this process."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(model: HubModel) -> Path | None:
    """The folder of a model at its revision, as far as the cache has it; None where it has nothing
    of it. What the cache last saw a branch or tag at counts."""
    folder = cache_folder() / model.cached_as
    commit = model.commit
    if commit is None:
        try:
            said = (folder / "refs" / model.revision).read_text().strip()
        except (OSError, ValueError):  # damaged: as one that the cache has never seen
            return None
        commit = HubModel(model.repo, said).commit
    there = None if commit is None else folder / "snapshots" / commit
    return there if there is not None and there.is_dir() else None


def known_folder(path: Path) -> Path:
    """Where a model is that a config gives as `path`: of a name on the hub the snapshot, where the
    cache has at least its config; else as it is given."""
    model = None if path.is_absolute() else hub_model(path)
    there = None if model is None else snapshot(model)
    described = there and any((there / name).is_file() for name in ("config.json", _ADAPTER))
    return there if there is not None and described else path


def base_of(folder: Path) -> HubModel | None:
    """The base on the hub that an adapter in `folder` names; None where it is or names none."""
    try:
        return hub_model(json.loads((folder / _ADAPTER).read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whoever opens an adapter says what is wrong with it


def missing_files(folder: Path) -> list[str]:
    """The files without which a snapshot is no checkpoint, of those that are not there.

    Other programs keep only what they have asked for, and a download may have been ended.
    """
    adapter = (folder / _ADAPTER).is_file()
    wanted = ["adapter_model.safetensors"] if adapter else ["config.json", *_weights(folder)]
    wanted += ["tokenizer.json"]
    if not any((folder / name).is_file() for name in _PROCESSOR):
        wanted += _PROCESSOR[-1:]
    return [name for name in wanted if not (folder / name).is_file()]  # also a link to nothing


def _weights(folder: Path) -> list[str]:
    if (folder / "model.safetensors").is_file() or not (folder / _INDEX).is_file():
        return ["model.safetensors"]
    try:
        return sorted(
            {str(f) for f in json.loads((folder / _INDEX).read_text())["weight_map"].values()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # whoever opens the checkpoint says what is wrong with it
