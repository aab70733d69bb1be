"""The deployments, end to end: a real Prefect server, the real commands, a project of its own.

The project is a folder with this one's `prefect.toml` and a config: so its server, its home and its
port are its own, and `prefect` is called as a user calls it, without environment variables.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.server import local as server
from flows.server import prefect_settings as settings
from flows.server import processes
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from tests.known import known
from tests.tiny_config import as_toml, tiny_settings

ROOT = Path(__file__).resolve().parents[2]


def installed() -> bool:
    try:
        importlib.metadata.distribution("videoopd")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_prefect_yaml_describes_what_is_served() -> None:
    from flows import deployments

    described = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [(d["name"], d["entrypoint"]) for d in described] == [
        (name, deployments.entrypoint(flow)) for name, flow in deployments.DEPLOYMENTS.items()
    ]
    for d in described:
        assert d["tags"] == [d["name"]]
        flow = deployments.DEPLOYMENTS[d["name"]]
        assert getattr(deployments, d["entrypoint"].rpartition(".")[2]) is flow
        assert flow.name == "videoopd"
        assert flow.description.splitlines()[0] == d["description"]


def test_every_key_of_prefect_toml_is_a_setting_of_prefect() -> None:
    import tomllib

    from prefect.settings.models.root import Settings

    def check(table: dict[str, Any], model: Any, path: str) -> None:
        for key, value in table.items():
            assert key in model.model_fields, f"{path}{key}"
            if isinstance(value, dict):
                check(value, model.model_fields[key].annotation, f"{path}{key}.")

    check(tomllib.loads((ROOT / "prefect.toml").read_text()), Settings, "")


def test_the_settings_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    found = settings.environment()
    assert found["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"
    assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert found["PREFECT_HOME"] == str(ROOT / ".prefect")
    assert found["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] == str(ROOT / ".prefect" / "storage")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    found = settings.environment()
    assert found["PREFECT_SERVER_MEMO_STORE_PATH"] == str(tmp_path / "home" / "memo_store.toml")


@dataclass(frozen=True)
class Project:
    folder: Path

    def videoopd(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self._run("flows.cli", *words)

    def prefect(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self._run("prefect", *words)

    def deployment_run(self, name: str, *parameters: str) -> subprocess.CompletedProcess[str]:
        given = [word for parameter in parameters for word in ("--param", parameter)]
        watch = ("--watch", "--watch-timeout", "200")
        return self.prefect("deployment", "run", name, *given, *watch)

    def _run(
        self, module: str, *words: object, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", module, *map(str, words)],  # as a console script
            cwd=folder or self.folder,
            env=clean_environment() | {"HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    @property
    def home(self) -> Path:
        """The user's."""
        return self.folder.parent / f"{self.folder.name}-home"

    @property
    def mark(self) -> str:
        return str(self.folder / ".prefect")


def clean_environment() -> dict[str, str]:
    """A user's: nothing of Prefect in it. (The package is found whether it is installed or not.)"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return kept | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_world: World) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project").resolve()
    shutil.copy(ROOT / "prefect.toml", folder)
    (folder / "flows").mkdir()  # as in many a Prefect project; none of ours may import it
    (folder / "flows" / "__init__.py").write_text('raise ImportError("the user\'s flows")\n')
    (folder / "configs").mkdir()
    settings_of_run = tiny_settings(Path("../runs/tiny"), tiny_world)
    (folder / "configs" / "tiny.toml").write_text(as_toml(settings_of_run))
    made = Project(folder)
    made.home.mkdir()
    yield made
    made.videoopd("down")


@pytest.fixture(scope="module")
def up(project: Project) -> Project:
    started = project.videoopd("up")
    assert started.returncode == 0, started.stderr + started.stdout
    return project


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("python /venv/bin/prefect deployment run videoopd/round --watch", True),
        ("python -m prefect deployment run videoopd/round", True),
        ("python /venv/bin/prefect deployment ls", False),
        ("python -m flows.cli run prefect", False),
        ("python -m pytest", False),
    ],
)
def test_the_hook_speaks_up_for_deployment_runs_only(words: str, expected: bool) -> None:
    from flows.server.prefect_plugin import _runs_a_deployment

    assert _runs_a_deployment(words.split()) is expected


@pytest.mark.skipif(not installed(), reason="Prefect finds the hook by the installed package")
def test_without_a_server_prefect_says_what_to_run(project: Project) -> None:
    told = project.deployment_run("videoopd/round", "config=configs/tiny.toml")
    assert told.returncode == 2
    assert "make up" in told.stderr
    assert "Traceback" not in told.stderr + told.stdout


def test_down_when_nothing_is_up(project: Project) -> None:
    done = project.videoopd("down")
    assert (done.returncode, done.stdout) == (0, "nothing was up\n")


@pytest.fixture(scope="module")
def round_run(up: Project) -> subprocess.CompletedProcess[str]:
    overrides = 'overrides=["focus.top_k=3"]'
    return up.deployment_run("videoopd/round", "config=configs/tiny.toml", overrides)


@pytest.mark.server
def test_a_round_by_its_deployment(
    up: Project, round_run: subprocess.CompletedProcess[str]
) -> None:
    assert round_run.returncode == 0, round_run.stdout + round_run.stderr
    assert "finished successfully" in round_run.stdout
    sql = "SELECT policy_version FROM updates"
    rows = up.videoopd("query", "configs/tiny.toml", sql, "--format", "json")
    assert json.loads(rows.stdout) == [{"policy_version": 1}]


@pytest.mark.server
def test_a_stage_by_its_deployment(
    up: Project, round_run: subprocess.CompletedProcess[str]
) -> None:
    done = up.deployment_run("videoopd/evaluate", "config=configs/tiny.toml", "round=0")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.server
@pytest.mark.in_turn
def test_from_any_folder_prefect_finds_the_server_that_is_up(
    up: Project, round_run: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    named = ("deployment", "run", "videoopd/validate", "--watch", "--watch-timeout", "200")
    given = ("--param", "config=configs/tiny.toml", "--param", "round=1")
    found = up._run("prefect", *named, *given, folder=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.server
@pytest.mark.in_turn
def test_a_stage_with_nothing_to_force_says_so(
    up: Project, round_run: subprocess.CompletedProcess[str]
) -> None:
    done = up.deployment_run("videoopd/validate", "config=configs/tiny.toml", "force=true")
    assert done.returncode == 1
    assert "forcing it would give the same answers" in " ".join(done.stdout.split())


@pytest.mark.server
@pytest.mark.in_turn
def test_a_failed_flow_is_an_exit_code_and_its_reason(up: Project) -> None:
    done = up.deployment_run("videoopd/score", "config=configs/nothing.toml")
    assert done.returncode == 1
    assert "there is no config at" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout


@pytest.mark.server
def test_up_again_changes_nothing(up: Project) -> None:
    before = (up.folder / ".prefect" / "server.json").read_text()
    again = up.videoopd("up")
    assert again.returncode == 0
    assert again.stdout.startswith("already up: http://127.0.0.1:")
    assert (up.folder / ".prefect" / "server.json").read_text() == before


@pytest.mark.server
def test_up_says_how_many_cards_rounds_share(up: Project) -> None:
    url = json.loads((up.folder / ".prefect" / "server.json").read_text())["url"]
    for cards in (3, 2):
        done = up.videoopd("up", "--gpus", cards)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"the limit 'gpu' has {cards} slots\n")
        with urllib.request.urlopen(f"{url}/v2/concurrency_limits/gpu") as reply:
            assert json.load(reply)["limit"] == cards


@pytest.mark.server
@pytest.mark.in_turn
def test_a_command_uses_the_server_that_is_up(
    up: Project, round_run: subprocess.CompletedProcess[str]
) -> None:
    assert up.videoopd("run", "configs/tiny.toml").returncode == 0
    assert not (up.folder / ".prefect" / "temporary-server.log").exists()


@pytest.mark.server
@pytest.mark.in_turn
def test_up_repairs_what_was_killed(up: Project) -> None:
    state = json.loads((up.folder / ".prefect" / "server.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    assert up.videoopd("up").returncode == 0
    after = json.loads((up.folder / ".prefect" / "server.json").read_text())
    assert after["pid"] != state["pid"]
    words = [word for p in processes.marked(up.mark) for word in p.cmdline()]
    assert words.count("flows.serving") == words.count("server") == 1, "one of each"


@pytest.mark.server
def test_down_leaves_no_process(up: Project) -> None:
    slow = 'overrides=["rollout.examples_per_round=64", "rollout.rollouts_per_example=64"]'
    up.prefect(
        "deployment", "run", "videoopd/round", "--param", "config=configs/tiny.toml",
        "--param", slow,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not any("prefect.engine" in p.cmdline() for p in processes.marked(up.mark)):
        assert time.monotonic() < end, "the flow did not start"
        time.sleep(0.2)
    url = json.loads((up.folder / ".prefect" / "server.json").read_text())["url"]
    done = up.videoopd("down")
    assert (done.returncode, done.stdout) == (0, "down\n")
    assert processes.marked(up.mark) == []
    assert not settings.answers(url)
    assert not (up.folder / ".prefect" / "profiles.toml").exists()
    assert not (up.home / ".prefect" / "profiles.toml").exists()


def test_a_profile_of_the_users_own_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the sentence says what to type instead."""
    monkeypatch.delenv("PREFECT_HOME")
    monkeypatch.delenv("PREFECT_PROFILES_PATH")
    (tmp_path / "project").mkdir()
    shutil.copy(ROOT / "prefect.toml", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    own = tmp_path / ".prefect" / "profiles.toml"
    said: list[str] = []
    server._publish_profile("http://127.0.0.1:9/api", said.append)
    assert said == [] and "127.0.0.1:9/api" in own.read_text()
    server._publish_profile("http://127.0.0.1:10/api", said.append)
    assert said == [] and "127.0.0.1:10/api" in own.read_text(), "of a server that is gone"
    own.write_text('active = "mine"\n')
    server._publish_profile("http://127.0.0.1:11/api", said.append)
    assert own.read_text() == 'active = "mine"\n'
    (line,) = said
    assert line.endswith("export PREFECT_API_URL=http://127.0.0.1:11/api")


SLEEPER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
print(child.pid, flush=True)
time.sleep(99)
"""


def start_sleeper(folder: Path, mark: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A process and the child that it has started."""
    log = folder / "sleeper.log"
    started = processes.start([sys.executable, "-c", SLEEPER], {}, mark, log, folder)
    end = time.monotonic() + 20
    while not log.read_text().endswith("\n"):
        assert time.monotonic() < end
        time.sleep(0.05)
    return started, psutil.Process(int(log.read_text()))


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_stopping_takes_the_children_along(tmp_path: Path) -> None:
    started, child = start_sleeper(tmp_path, "family")
    assert processes.stop("family") == 2
    assert gone(child)
    assert started.poll() is not None


def test_children_are_found_after_their_parent_was_killed(tmp_path: Path) -> None:
    started, child = start_sleeper(tmp_path, "orphans")
    started.kill()
    started.wait()
    assert processes.stop("orphans") == 1
    assert gone(child)


def test_what_ends_with_us_ends_however_we_do(tmp_path: Path) -> None:
    """Killed outright, a command leaves no server behind, also when it holds Lance."""
    code = (
        "import os, signal, sys, lance\n"
        "from pathlib import Path\n"
        "from flows.server.processes import start\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(99)']\n"
        f"log = Path({str(tmp_path / 'log')!r})\n"
        "print(start(command, {}, 'ours', log, Path.cwd(), ends_with_us=True).pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    child = psutil.Process(int(known(parent.stdout).readline()))
    end = time.monotonic() + 20
    while "sleep" not in " ".join(child.cmdline()[:3]):  # it has become the command
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.kill()
    _, complaint = parent.communicate()
    assert complaint == "", "nothing was forked"
    while not gone(child):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_number_that_was_used_again_is_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`down` leaves the process alone that has the number of what `up` started by now."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (tmp_path / "server.json").write_text(
        json.dumps({"url": "http://127.0.0.1:9/api", "pid": os.getpid()})
    )
    assert not processes.carries(os.getpid(), str(tmp_path))
    said: list[str] = []
    server.down(said.append)
    assert said == ["nothing was up"]


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(server, "_is_free", lambda port: False)
    port, note = server._choose_port()
    assert port != server.DEFAULT_PORT
    assert note == f"port {server.DEFAULT_PORT} is taken by another program; using {port}"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4321/api")
    with pytest.raises(VideoOPDError, match="port 4321"):
        server._choose_port()


def test_a_relative_home_is_one_folder_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", "mine")
    words = ("-n", "1", "-r", "1", "import os; print(os.environ['PREFECT_HOME'])")
    assert server._start("timeit", *words, mark="relative", log="told.log").wait(60) == 0
    told = (tmp_path / "mine" / "told.log").read_text().splitlines()
    assert told[0] == str(tmp_path / "mine")


def test_up_is_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    with pytest.raises(VideoOPDError, match="on this machine"):
        server._choose_port()


def test_a_damaged_state_file_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is up is asked of the processes; the file of an older version had other keys."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    for content in ("{", "[]", '{"url": "http://127.0.0.1:9/api", "server": {"pid": 1}}'):
        (tmp_path / "server.json").write_text(content)
        assert server.current() is None
        started, child = start_sleeper(tmp_path, str(tmp_path))
        said: list[str] = []
        server.down(said.append)
        assert said == ["down"] and gone(child) and started.poll() is not None
        assert not (tmp_path / "server.json").exists()
        (tmp_path / "sleeper.log").unlink()


def test_serving_for_no_server_says_how(project: Project) -> None:
    done = project._run("flows.serving")
    assert done.returncode == 2
    assert done.stderr.startswith("videoopd: PREFECT_API_URL names no server")
    assert done.stderr.count("\n") == 1
