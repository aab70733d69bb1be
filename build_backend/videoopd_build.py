"""The build backend: setuptools' own, and what it has no way to put into a wheel.

`ADDED` goes into the wheel's root, site-packages: Python reads `.pth` files there and nowhere else,
in an editable install too. What they are for: `videoopd_torchvision.py`.

`SHIPPED` are files of the checkout's root that `videoopd demo` needs, in `flows/project/`, where
`flows/shipped.py` looks for them; an editable install finds them in the checkout.
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
SHIPPED = (
    "prefect.toml",
    "configs/*.toml",
    "configs/prefect/*.yaml",
    "configs/studies/*.toml",
    "configs/tiny/*/*",
)
"""Each has to match something."""
SHIPPED_TO = "flows/project"


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    _add_to(Path(wheel_directory, name), _added() | _shipped(Path.cwd()))
    return name


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    _add_to(Path(wheel_directory, name), _added())
    return name


def _added() -> dict[str, bytes]:
    return {name: Path(__file__).with_name(name).read_bytes() for name in ADDED}


def _shipped(root: Path) -> dict[str, bytes]:
    """Name in the wheel -> content. Raises `FileNotFoundError` where a part is missing."""
    content: dict[str, bytes] = {}
    for pattern in SHIPPED:
        files = [file for file in sorted(root.glob(pattern)) if file.is_file()]
        if not files:
            raise FileNotFoundError(f"{root} has no {pattern}, which belongs into the wheel")
        for file in files:
            content[f"{SHIPPED_TO}/{file.relative_to(root).as_posix()}"] = file.read_bytes()
    return content


def _add_to(wheel: Path, files: dict[str, bytes]) -> None:
    """Writes the wheel again with `files` in it, and in its RECORD."""
    whole = wheel.with_suffix(".whole")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                rows = [_record(name, added) for name, added in files.items()]
                content = b"".join([*rows, content])
            new.writestr(item, content)
        for name, added in files.items():
            new.writestr(name, added)
    whole.replace(wheel)


def _record(name: str, content: bytes) -> bytes:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n".encode()
