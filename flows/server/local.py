"""`videoopd up` and `down`, and the Prefect server that a single command needs.

`up` leaves one process behind (`flows/serving.py`): it serves the deployments, and has started the
Prefect server, on loopback and in the project's home folder (`.prefect`). `up` returns when both
really answer. The address goes into `profiles.toml` there, where every plain `prefect` command in
the project folder finds it, and into the user's own (`~/.prefect/profiles.toml`), where those of
any other folder look, if the user has none.

The server is `prefect server start`. Its `--background` and `prefect server stop` are not used:
they leave the server's output in a pipe that nobody reads, return before it answers or has ended,
and stop whatever process has the number in `server.pid` by now.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
import time
import tomllib
import urllib.parse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen

from flows.server import prefect_settings as settings
from flows.server.processes import carries, start, stop
from opd_core.types import VideoOPDError
from storage import locks
from storage.files import short, write_whole

DEFAULT_PORT = 4200
START_SECONDS = 120.0
"""Longest wait for a server, and for the deployments; the first start makes a database."""
_PROFILE_HEADER = "# Written by `videoopd up`, removed by `videoopd down`.\n"


def up(say: Callable[[str], None] = print) -> str:
    """Start the server and the deployments where they are not running; returns the API's address.

    Raises `VideoOPDError` when one of them cannot start.
    """
    with _one_at_a_time("up"):
        url = current()
        if url is not None:
            say(f"already up: {_page(url)}")
            return url
        _end()
        port, note = _choose_port()
        if note:
            say(note)
        url = _loopback(port)
        say("starting a Prefect server and the deployments (about 20 seconds)")
        try:
            serving = _start("flows.serving", str(port), mark=_mark(), log="deployments.log")
            # The server's start and then that of the deployments, each as slow as it may be.
            _wait(
                lambda: current() == url,
                serving,
                "the deployments",
                "deployments.log",
                2 * START_SECONDS,
            )
        except BaseException:
            _end()
            raise
        _publish_profile(url, say)
        say(f"up: {_page(url)} (logs in {short(settings.home())})")
        return url


def down(say: Callable[[str], None] = print) -> None:
    """Stop what `up` started, children included; says so when there was nothing."""
    with _one_at_a_time("down"):
        say("down" if _end() else "nothing was up")


def current() -> str | None:
    """Address of the server that `up` started here, if it answers and deployments are served."""
    try:
        serving = json.loads(_state_file().read_text())
        url, pid = str(serving["url"]), int(serving["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if carries(pid, _mark()) and settings.answers(url) else None


def tell_served() -> None:
    """Say to `up`, and to whoever asks for `current`, that this process serves the deployments."""
    state = {"url": os.environ["PREFECT_API_URL"], "pid": os.getpid()}
    write_whole(_state_file(), json.dumps(state) + "\n")


def connect() -> Callable[[], None]:
    """Give this process a Prefect API; see `flows/server/prefect_settings.py` for which.

    Call it before Prefect is imported. Returns a function that returns once the server answers, so
    that slow imports can go on meanwhile.
    """
    settings.apply()
    url = settings.named_server() or current()
    if url is not None:
        os.environ["PREFECT_API_URL"] = url
        return lambda: None
    mark, port = f"{settings.home()}:{os.getpid()}", _free_port()
    os.environ[settings.TEMPORARY] = _loopback(port)
    return start_server(port, mark, "temporary-server.log", "--no-ui")


def start_server(
    port: int, mark: str | None = None, log: str = "server.log", *options: str
) -> Callable[[], None]:
    """Start a Prefect server for this process; returns what waits until it answers.

    It ends with the process, after Prefect has sent the last logs to it (its exit hooks run before
    those of `atexit`). Call it before Prefect is imported.
    """
    settings.apply()
    os.environ["PREFECT_API_URL"] = url = _loopback(port)
    mark = mark or _mark()
    address = ("--host", "127.0.0.1", "--port", str(port))
    command = ("prefect", "server", "start", *address, *options)
    server = _start(*command, mark=mark, log=log, ends_with_us=True)
    atexit.register(stop, mark, grace=3.0)
    return lambda: _wait(lambda: settings.answers(url), server, "the Prefect server", log)


def _start(
    module: str, *words: str, mark: str, log: str, ends_with_us: bool = False
) -> Popen[bytes]:
    return start(
        [sys.executable, "-m", module, *words],
        settings.environment(),  # its home is absolute: the process starts in another folder
        mark,
        settings.home() / log,
        settings.working_folder(),
        ends_with_us=ends_with_us,
    )


def _wait(
    ready: Callable[[], bool],
    process: Popen[bytes],
    what: str,
    log: str,
    seconds: float = START_SECONDS,
) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise VideoOPDError(f"{what} did not start; the reason is in {_log_end(log)}")
        if time.monotonic() > end:
            raise VideoOPDError(f"{what} did not answer in {seconds:.0f} s; see {_log_end(log)}")
        time.sleep(0.2)


def _one_at_a_time(command: str) -> AbstractContextManager[object]:
    return locks.held(settings.home() / "up.lock", command, timeout=3 * START_SECONDS)


def _loopback(port: int) -> str:
    return f"http://127.0.0.1:{port}/api"


def _choose_port() -> tuple[int, str | None]:
    """The port of PREFECT_API_URL, else the default, else a free one; with a remark about it."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        if _is_free(DEFAULT_PORT):
            return DEFAULT_PORT, None
        port = _free_port()
        return port, f"port {DEFAULT_PORT} is taken by another program; using {port}"
    parts = urllib.parse.urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost") or parts.path.rstrip("/") != "/api":
        raise VideoOPDError(
            f"`up` starts a server on this machine, but PREFECT_API_URL = {url}; unset it, or "
            "serve the deployments of that server with `python -P -m flows.serving`"
        )
    port = parts.port or DEFAULT_PORT
    if not _is_free(port):
        raise VideoOPDError(
            f"port {port} (from PREFECT_API_URL) is taken by another program; choose another port"
        )
    return port, None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _end() -> int:
    """End all that `up` started, and remove what says where it is; returns how many processes."""
    ended = stop(_mark())
    for profile in (settings.home() / "profiles.toml", settings.profiles_elsewhere()):
        url = None if profile is None else _profile_url(profile)
        if profile is not None and url is not None and not settings.answers(url):
            profile.unlink()
    _state_file().unlink(missing_ok=True)
    return ended


def _publish_profile(url: str, say: Callable[[str], None]) -> None:
    """Let plain `prefect` commands find the server: in the project folder, and in any other one
    unless the user has a profile of their own there, or another checkout's server is up.
    """
    here = _write_profile(settings.home() / "profiles.toml", url)
    if not here or settings.home() != settings.project_root() / ".prefect":
        say(f"for `prefect` commands: export PREFECT_API_URL={url}")
        return
    elsewhere = settings.profiles_elsewhere()
    if elsewhere is not None and not _write_profile(elsewhere, url):
        say(f"for `prefect` commands in other folders: export PREFECT_API_URL={url}")


def _write_profile(file: Path, url: str) -> bool:
    """Name the server in `file`; returns whether it does, which it does not in somebody else's."""
    known = _profile_url(file)
    if file.exists() and (known is None or (known != url and settings.answers(known))):
        return False
    text = f'active = "videoopd"\n\n[profiles.videoopd]\nPREFECT_API_URL = "{url}"\n'
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, _PROFILE_HEADER + text)
    except OSError:
        return False
    return True


def _profile_url(file: Path) -> str | None:
    """The server that a profile of ours names; None for a file that is not ours."""
    try:
        text = file.read_text()
        if text.startswith(_PROFILE_HEADER):
            return str(tomllib.loads(text)["profiles"]["videoopd"]["PREFECT_API_URL"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _state_file() -> Path:
    return settings.home() / "server.json"


def _mark() -> str:
    return str(settings.home())


def _log_end(name: str) -> str:
    """Name the log, and its last line."""
    path = settings.home() / name
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return str(short(path)) + (f" (last line: {last})" if last else "")


def _page(api_url: str) -> str:
    return api_url.removesuffix("/api")
