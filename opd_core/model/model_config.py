"""A checkpoint's `config.json`, as transformers understands it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opd_core.model.kept import kept_while_untouched


@kept_while_untouched
def opened_config(folder: Path) -> Any:
    """The config of a full checkpoint's folder; who asks again gets the same one, so it is not to
    be changed.

    Raises what transformers does where there is none, or it is not readable: OSError, ValueError.
    """
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)
