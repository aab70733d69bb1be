"""The wheel runs outside the repository: what it holds, and what the demo makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.test_build_backend import ROOT, build

ITS_OWN = ("HOME", "PREFECT_", "PYTHONPATH", "XDG_")
"""Beginnings of the variables that a test of an installed program sets itself."""


class Installed:
    """The wheel unpacked into a folder, and a user who starts Python elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.home = folder / "home"
        with zipfile.ZipFile(build("build_wheel", folder)) as wheel:
            wheel.extractall(self.site)

    def python(self, cwd: Path, *arguments: str, **env: str) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ITS_OWN)}
        here = {"HOME": str(self.home), "PYTHONPATH": str(self.site)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=cwd, env=kept | here | env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


def shipped() -> list[Path]:
    named = ["prefect.toml", "configs/tiny.toml"]
    models = [p for p in (ROOT / "configs" / "tiny").rglob("*") if p.is_file()]
    return [ROOT / name for name in named] + models


def test_it_holds_the_demos_files_and_the_markers_of_types(installed: Installed) -> None:
    assert len(shipped()) > 10
    for file in shipped():
        copy = installed.site / "flows" / "project" / file.relative_to(ROOT)
        assert copy.read_bytes() == file.read_bytes()
    for package in ("flows", "opd_core", "storage"):
        assert (installed.site / package / "py.typed").is_file()


def test_it_holds_what_is_no_python_beside_the_modules(installed: Installed) -> None:
    beside = [
        path.relative_to(ROOT)
        for path in (ROOT / "flows").rglob("*")
        if path.suffix in (".html", ".css", ".js", ".svg")
    ]
    assert {path.parent.name for path in beside} >= {"templates", "static"}
    assert [path for path in beside if not (installed.site / path).is_file()] == []


def test_an_editable_install_uses_the_checkouts(tmp_path: Path) -> None:
    with zipfile.ZipFile(build("build_editable", tmp_path)) as wheel:
        assert [name for name in wheel.namelist() if name.startswith("flows/")] == []


def test_a_wheel_without_a_model_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "build_backend")
    import videoopd_build

    (tmp_path / "prefect.toml").touch()
    with pytest.raises(FileNotFoundError, match=r"configs/\*\.toml"):
        videoopd_build._shipped(tmp_path)


def test_it_tells_the_version_of_the_project_and_no_commit(
    installed: Installed, tmp_path: Path
) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    lines = installed.python(tmp_path, "-m", "flows.cli", "--version").splitlines()
    assert lines[0] == f"videoopd {version}"


def test_init_writes_a_config(installed: Installed, tmp_path: Path) -> None:
    installed.python(tmp_path, "-m", "flows.cli", "init", "mine.toml")
    assert tomllib.loads((tmp_path / "mine.toml").read_text())["data"]


DEMO_CONFIG = """
import json
from pathlib import Path
import flows
from flows.demo import config_file
from flows.server import prefect_settings
from opd_core.config.load import load_config

file = config_file()
config = load_config(file)
print(json.dumps({
    "flows": flows.__file__, "file": str(file), "run": str(config.run.path),
    "world": str(config.data.train), "home": str(prefect_settings.home()),
    "settings": prefect_settings.environment(),
}))
"""


def test_the_demo_brings_its_files_into_a_folder_here(installed: Installed, tmp_path: Path) -> None:
    told = installed.python(tmp_path, "-c", DEMO_CONFIG).splitlines()
    assert told[0] == "configs, runs and worlds of the demo are in videoopd-demo"
    found = json.loads(told[1])
    assert Path(found["flows"]).is_relative_to(installed.site)
    assert found["file"] == "videoopd-demo/configs/tiny.toml"
    demo = tmp_path / "videoopd-demo"
    assert Path(found["run"]) == demo / "runs" / "tiny"
    assert Path(found["world"]) == demo / "worlds" / "tiny-loose" / "train.jsonl"
    assert Path(found["home"]) == installed.home / ".local/share/videoopd/.prefect"
    assert found["settings"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false", "prefect.toml's"
    assert not (installed.site / ".prefect").exists()


def test_the_demos_models_open(installed: Installed, tmp_path: Path) -> None:
    code = (
        "from flows.demo import config_file\n"
        "from opd_core.config.load import load_config\n"
        "from opd_core.model.checkpoint import open_checkpoint\n"
        "config = load_config(config_file())\n"
        "for model in (config.student, config.teacher):\n"
        "    print(open_checkpoint(model.path, model.dtype).num_parameters())"
    )
    student, teacher = map(int, installed.python(tmp_path, "-c", code).split()[-2:])
    assert 100_000 < student < teacher


def test_what_the_user_changed_in_the_demo_stays(installed: Installed, tmp_path: Path) -> None:
    installed.python(tmp_path, "-c", DEMO_CONFIG)
    demo = tmp_path / "videoopd-demo"
    config = demo / "configs" / "tiny.toml"
    config.write_text(config.read_text().replace("seed = 0", "seed = 7"))
    (demo / "configs" / "tiny" / "student" / "config.json").unlink()
    installed.python(tmp_path, "-c", DEMO_CONFIG)
    assert tomllib.loads(config.read_text())["run"]["seed"] == 7
    assert (demo / "configs" / "tiny" / "student" / "config.json").is_file(), (
        "what is missing comes"
    )


def test_the_demos_folder_is_a_project(installed: Installed, tmp_path: Path) -> None:
    installed.python(tmp_path, "-c", DEMO_CONFIG)
    demo = tmp_path / "videoopd-demo"
    found = json.loads(installed.python(demo, "-c", DEMO_CONFIG))
    assert found["file"] == "configs/tiny.toml"
    assert Path(found["home"]) == demo / ".prefect"


def test_the_users_own_place_for_data_is_taken(installed: Installed, tmp_path: Path) -> None:
    code = "from flows.server import prefect_settings as s; print(s.working_folder())"
    data = tmp_path / "data"
    told = installed.python(tmp_path, "-c", code, XDG_DATA_HOME=str(data)).strip()
    assert Path(told) == data / "videoopd"
    assert (data / "videoopd").is_dir()
