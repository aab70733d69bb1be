"""The build backend: setuptools' own, and two files more in the wheel's root, site-packages.

Python reads `.pth` files there and nowhere else, and setuptools has no way to put one there that
holds for an editable install too. What they are for: `videoopd_torchvision.py`.
"""

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (the hooks that stay as they are)
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

ADDED = ("videoopd_torchvision.pth", "videoopd_torchvision.py")


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    _add_to(Path(wheel_directory, name))
    return name


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    _add_to(Path(wheel_directory, name))
    return name


def _add_to(wheel: Path) -> None:
    """Writes the wheel again with `ADDED` in it, and in its RECORD."""
    whole = wheel.with_suffix(".whole")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                content = b"".join([*map(_record, ADDED), content])
            new.writestr(item, content)
        for name in ADDED:
            new.writestr(name, _content(name))
    whole.replace(wheel)


def _content(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


def _record(name: str) -> bytes:
    content = _content(name)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n".encode()
