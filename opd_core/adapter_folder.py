"""The folder of a PEFT adapter: that it is one, and which base it stands on.

Below models and tables both: a hash of an adapter is also of the base that a loader would take.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opd_core.hub.cache import snapshot
from opd_core.hub.name import hub_model
from opd_core.types import VideoOPDError

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter and no weights of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_config(adapter: Path) -> tuple[dict[str, Any], Path]:
    """What the adapter says of itself, and the base that it names, which may be gone: an absolute
    path, or one below the adapter's folder or below this process's, or a name on the hub of which
    the cache has something.

    Raises `VideoOPDError` where it names none.
    """
    path = adapter / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        named = Path(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VideoOPDError(
            f"{path} names no base model ({type(error).__name__}: {error}); restore it, or write"
            " the base's folder as its base_model_name_or_path"
        ) from None
    below = adapter / named
    if below.is_dir() or named.is_dir():
        return config, below if below.is_dir() else named
    model = hub_model(named)
    return config, (snapshot(model) if model else None) or named


def base_folder(adapter: Path) -> Path:
    """The checkpoint that a PEFT adapter was trained on. Raises `VideoOPDError` where it is gone,
    or an adapter too."""
    _, base = adapter_config(adapter)
    refuse_gone(adapter, base)
    if is_adapter(base):
        raise VideoOPDError(
            f"the adapter in {adapter} stands on {base}, which is an adapter too; merge that one "
            "into its base first, and name the merged folder"
        )
    return base


def refuse_gone(adapter: Path, base: Path) -> None:
    """Raises `VideoOPDError` where the base that an adapter names is not there."""
    if not base.is_dir():
        raise VideoOPDError(
            f"the adapter in {adapter} was trained on {base}, which is not there; restore it, or "
            f"correct base_model_name_or_path in its {ADAPTER_CONFIG}"
        )
