"""`videoopd view` as it is typed: the address it prints, the tunnel, its end, what it takes."""

from __future__ import annotations

import getpass
import http.client
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from flows import cli
from flows.view import serve
from flows.view.place import Place
from storage.runs.run import Run
from tests.flows.view.conftest import copied
from tests.known import known
from tests.tiny_config import ROOT

OVER_SSH = {"SSH_CONNECTION": "192.0.2.7 51000 192.0.2.1 2222", "DISPLAY": ":0"}


@contextmanager
def started(
    environment: dict[str, str], *words: object
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command in a process of its own, and the lines that it has printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "view", *map(str, words)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "Ctrl-C ends it":
            lines.append(process.stdout.readline().rstrip("\n"))
            assert lines[-1], process.communicate()
        yield process, lines
    finally:
        process.kill()
        process.communicate()


def got(address: str) -> tuple[int, str]:
    """(status, body) of an address with its key, which becomes a cookie on the way."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(known(place.hostname), known(place.port), timeout=60)
    to, cookie = f"{place.path}?{place.query}", ""
    while True:
        connection.request("GET", to, headers={"Cookie": cookie})
        answer = connection.getresponse()
        body = answer.read().decode()
        cookie = (answer.getheader("Set-Cookie") or cookie).split(";")[0]
        if answer.status not in (303, 307):
            connection.close()
            return answer.status, body
        to = known(answer.getheader("Location"))


def test_it_serves_until_ctrl_c(finished: Path, command_environment: dict[str, str]) -> None:
    run = finished.with_name("tiny")
    with started(command_environment | OVER_SSH, run) as (process, lines):
        address, tunnel, _ = lines
        port = known(urlsplit(address).port)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?key=[\w-]{32}", address)
        here = f"{port}:127.0.0.1:{port} -p 2222 {getpass.getuser()}@192.0.2.1"
        assert tunnel == f"from your own machine, first: ssh -N -L {here}"
        status, body = got(address)
        assert status == 200 and "<h1>tiny</h1>" in body
        assert psutil.Process(process.pid).memory_info().rss < 500 * 2**20
        listening = [
            c for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"
        ]
        assert [c.laddr[0] for c in listening] == ["127.0.0.1"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err.strip()) == (0, "")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.in_turn(always=["15"])
def test_nothing_of_it_is_left_when_it_is_stopped_or_its_terminal_is_closed(
    finished: Path, command_environment: dict[str, str], tmp_path: Path, sent: signal.Signals
) -> None:
    run, environment = finished.with_name("tiny"), command_environment | {"TMPDIR": str(tmp_path)}
    with started(environment, run) as (process, lines):
        first = urlsplit(lines[0])
        asked = first._replace(path="/tiny/rollouts", query=f"where=tokens>0&{first.query}")
        assert got(asked.geturl())[0] == 200
        assert list(tmp_path.glob("videoopd-view-*/kept.arrow"))
        children = psutil.Process(process.pid).children()
        assert children, "the process that answers `where`"
        process.send_signal(sent)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err.strip()) == (128 + signal.SIGTERM, "")
        assert not list(tmp_path.glob("videoopd-view-*"))
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_two_servers_have_ports_of_their_own() -> None:
    first, second = serve.listen(None), serve.listen(None)
    try:
        assert first.getsockname() != second.getsockname()
    finally:
        first.close()
        second.close()


def test_a_port_that_is_taken_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = serve.listen_anywhere()
    port = taken.getsockname()[1]
    assert cli.main(["view", str(finished.with_name("tiny")), "--port", str(port)]) == 2
    taken.close()
    assert f"videoopd: port {port} cannot be used (Address already in use)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "missing argument"),
        (["nowhere"], "nowhere is no run: there is nothing of that name"),
        (["{run}", "--port", "0"], "'0' is not a port, from 1 to 65535"),
        (["{run}@7"], "has not finished round 7"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    run = str(finished.with_name("tiny"))
    assert cli.main(["view", *(word.replace("{run}", run) for word in words)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True),
        ({}, False),  # a browser in the terminal would take it over
        (OVER_SSH, False),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="windows elsewhere need no display named")
def test_a_browser_opens_where_it_is_seen(environment: dict[str, str], shown: bool) -> None:
    assert serve.shows_windows(environment) is shown


def test_without_ssh_there_is_no_tunnel() -> None:
    assert serve.hint({}, 8470) == "Ctrl-C ends it"
    usual = serve.hint({"SSH_CONNECTION": "192.0.2.7 51000 192.0.2.1 22"}, 8470)
    assert f"-L 8470:127.0.0.1:8470 {getpass.getuser()}@192.0.2.1\n" in usual


def test_names_of_runs_are_theirs_alone(finished: Path, tmp_path: Path) -> None:
    copied(finished, tmp_path / "a", "static")
    copied(finished, tmp_path / "b", "tiny")
    paths = (finished.with_name("tiny"), tmp_path / "a" / "static", tmp_path / "b" / "tiny")
    place = Place([Run.open(path) for path in paths])
    assert list(place.shown) == ["tiny", "static-2", "tiny-2"]


def test_an_open_run_is_kept_until_it_is_another(finished: Path, tmp_path: Path) -> None:
    copied(finished, tmp_path)
    place = Place([Run.open(tmp_path / "tiny")])
    assert place.run("tiny") is place.run("tiny")
    assert place.run("tiny", 1) is place.run("tiny", 1) is not place.run("tiny")
    before, as_of_one = place.state("tiny"), place.run("tiny", 1)
    time.sleep(0.01)
    (tmp_path / "tiny" / "run.json").touch()
    assert place.run("tiny", 1) is not as_of_one
    assert place.state("tiny") == before  # no page has other content for it
