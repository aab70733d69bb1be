"""Paths in overrides: whose folder they begin in.

A path in a config file is relative to that file, and so is one in the overrides that `load_config`
and the deployments get: they run in no folder of the user's. What is typed in a shell is relative
to the shell's folder, so the command line makes it whole first, with `from_folder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel

from opd_core.config.load import Config, absolute_path, parse_override
from opd_core.config.section import ChoosingSection
from opd_core.config.sections import ModelPath
from opd_core.config.toml_text import toml_value
from opd_core.types import VideoOPDError


def from_folder(overrides: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The overrides with every path made absolute, relative ones from `folder`.

    Raises `VideoOPDError` for what is no override, and for an empty path.
    """
    return tuple(_from_folder(override, folder) for override in overrides)


def _from_folder(override: str, folder: Path) -> str:
    names, value, text = parse_override(override)
    kinds = _kinds_at(names)
    if _is_path(kinds) and not isinstance(value, str | dict):
        value = text  # `--set run.path=2026-11-27`: a folder, and no date
    absolute = _whole(kinds, value, folder, override)
    return override if absolute == value else f"{'.'.join(names)}={toml_value(absolute)}"


def _whole(kinds: tuple[object, ...], value: object, folder: Path, override: str) -> object:
    if isinstance(value, dict):
        fields = {
            name: _kinds(field.annotation)
            for kind in kinds
            if isinstance(kind, type) and issubclass(kind, BaseModel)
            for name, field in kind.model_fields.items()
        }
        return {k: _whole(fields.get(k, ()), v, folder, override) for k, v in value.items()}
    if not _is_path(kinds) or not isinstance(value, str):
        return value
    if not value.strip():
        raise VideoOPDError(f"--set {override!r} names no path; give one, or leave it out")
    return str(absolute_path(Path(value), folder, ModelPath in kinds))


def _kinds_at(names: Sequence[str]) -> tuple[object, ...]:
    """What the value of a key may be; nothing for a key that there is not."""
    kinds: tuple[object, ...] = (Config,)
    for name in names:
        models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if any(get_origin(kind) is tuple for kind in kinds):  # of sections: this is one's name
            kinds = tuple(models)
            continue
        fields = [m.model_fields[name] for m in models if name in m.model_fields]
        choosing = [m for m in models if issubclass(m, ChoosingSection)]
        parts = [m.settings_of(name) for m in choosing if name not in m.model_fields]
        annotations = [*(field.annotation for field in fields), *filter(None, parts)]
        kinds = tuple(kind for annotation in annotations for kind in _kinds(annotation))
    return kinds


def _is_path(kinds: tuple[object, ...]) -> bool:
    return Path in kinds or ModelPath in kinds


def _kinds(annotation: object) -> tuple[object, ...]:
    return (annotation, *get_args(annotation))
