"""What an install adds to the environment: torchvision loads there, in any program."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ("videoopd_torchvision.pth", "videoopd_torchvision.py")
PARTS = (
    "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "prefect.toml", "build_backend",
    "configs", "flows", "opd_core", "storage",
)  # fmt: skip


def plain(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_looking_for_torchvision_imports_nothing() -> None:
    out = plain(
        "import importlib.util, sys\n"
        "assert importlib.util.find_spec('torchvision').origin\n"
        "print('torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    assert out.split() == ["False", "False"]


def test_torchvision_loads_and_its_transforms_work() -> None:
    out = plain(
        "import torchvision, torch, sys\n"
        "from torchvision.transforms.v2 import functional as F\n"
        "x = F.resize(torch.arange(48.).reshape(1, 3, 4, 4), [2, 2], antialias=True)\n"
        "print(tuple(x.shape), 'opd_core' in sys.modules)"
    )
    assert out.strip() == "(1, 3, 2, 2) False"


def build(kind: str, folder: Path) -> Path:
    """The wheel that `build_wheel` or `build_editable` makes of a copy of this checkout."""
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copyfile
        copy(ROOT / part, source / part)
    code = (f"import sys; sys.path.insert(0, 'build_backend'); import videoopd_build as b; "
            f"print(b.{kind}({str(folder)!r}))")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.mark.parametrize("kind", ["build_wheel", "build_editable"])
def test_the_wheel_brings_it_along(tmp_path: Path, kind: str) -> None:
    with zipfile.ZipFile(build(kind, tmp_path)) as wheel:
        assert wheel.testzip() is None
        names = wheel.namelist()
        assert len(set(names)) == len(names)
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        rows = {row[0]: row for row in csv.reader(io.StringIO(wheel.read(record).decode()))}
        assert set(rows) == set(names), "every file is in the record, and no other"
        for name in FILES:
            content = wheel.read(name)
            assert content == (ROOT / "build_backend" / name).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            assert rows[name][1:] == [f"sha256={digest.decode()}", str(len(content))]
