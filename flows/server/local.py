"""`videoopd up` and `down`, and the Prefect server that a single command needs.

`up` starts two processes in the project's home folder (`.prefect`): a Prefect server on loopback,
and one that serves the deployments. It returns when both really answer. What runs is written to
`server.json` there; the address also goes into `profiles.toml`, where every plain `prefect` command
in the project folder finds it, and into the user's own (`~/.prefect/profiles.toml`), where those of
any other folder look, if the user has none.
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
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from flows.server import prefect_settings as settings
from flows.server.processes import ProcessId, start, stop
from opd_core.types import VideoOPDError
from storage import locks
from storage.files import write_whole

DEFAULT_PORT = 4200
START_SECONDS = 120.0
"""Longest wait for a server or the deployments; the first start makes a database."""
_PROFILE_HEADER = "# Written by `videoopd up`, removed by `videoopd down`.\n"


@dataclass(frozen=True, slots=True)
class Running:
    """What `up` started."""

    url: str
    server: ProcessId
    deployments: ProcessId | None


def up(say: Callable[[str], None] = print) -> str:
    """Start the server and the deployments where they are not running; returns the API's address.

    Raises `VideoOPDError` when one of them cannot start.
    """
    with locks.held(settings.home() / "up.lock", "up", timeout=2 * START_SECONDS):
        found = _read()
        if found is not None and _complete(found):
            say(f"already up: {_page(found.url)}")
            return found.url
        if found is not None:
            _end(found)
        port, note = _choose_port()
        if note:
            say(note)
        url = f"http://127.0.0.1:{port}/api"
        say("starting a Prefect server and the deployments (about 20 seconds)")
        server = _start_server(port, log="server.log")
        running = Running(url, server, None)
        _write(running)
        try:
            _wait(lambda: settings.answers(url), server, "the Prefect server", "server.log")
            running = Running(url, server, _start_deployments(url))
            _write(running)
            _wait_for_deployments(running)
        except BaseException:
            _end(running)
            raise
        _publish_profile(url, say)
        say(f"up: {_page(url)} (logs in {_short(settings.home())})")
        return url


def down(say: Callable[[str], None] = print) -> None:
    """Stop what `up` started, children included; says so when there was nothing."""
    with locks.held(settings.home() / "up.lock", "down", timeout=2 * START_SECONDS):
        found = _read()
        ended = _end(found) if found is not None else stop([], _mark())
        say("down" if ended else "nothing was up")


def current() -> str | None:
    """Address of the server that `up` started here, if it answers."""
    found = _read()
    if found is None or found.server.find() is None:
        return None
    return found.url if settings.answers(found.url) else None


def connect() -> Callable[[], None]:
    """Gives this process a Prefect API; see `flows/server/prefect_settings.py` for which.

    Call it before Prefect is imported. Returns a function that returns once the server answers, so
    that slow imports can go on meanwhile. A server started here ends with the process, after
    Prefect has sent the last logs to it (its exit hooks run before those of `atexit`).
    """
    settings.apply()
    url = settings.named_server() or current()
    if url is not None:
        os.environ["PREFECT_API_URL"] = url
        return lambda: None
    port = _free_port()
    os.environ["PREFECT_API_URL"] = url = f"http://127.0.0.1:{port}/api"
    mark = f"{settings.home()}:{os.getpid()}"
    process = _start_server(port, log="temporary-server.log", mark=mark, ends_with_us=True)
    atexit.register(stop, [process], mark, grace=3.0)
    return lambda: _wait(
        lambda: settings.answers(url), process, "the Prefect server", "temporary-server.log"
    )


def _start_server(
    port: int, *, log: str, mark: str | None = None, ends_with_us: bool = False
) -> ProcessId:
    options = ["--host", "127.0.0.1", "--port", str(port)] + (["--no-ui"] if ends_with_us else [])
    return start(
        [sys.executable, "-m", "prefect", "server", "start", *options],
        settings.environment(),
        mark or _mark(),
        settings.home() / log,
        settings.working_folder(),
        ends_with_us=ends_with_us,
    )


def _start_deployments(url: str) -> ProcessId:
    return start(
        [sys.executable, "-m", "flows.deployments"],
        settings.environment() | {"PREFECT_API_URL": url},
        _mark(),
        settings.home() / "deployments.log",
        settings.working_folder(),
    )


def _wait(ready: Callable[[], bool], process: ProcessId, what: str, log: str) -> None:
    end = time.monotonic() + START_SECONDS
    while not ready():
        if process.find() is None:
            raise VideoOPDError(f"{what} did not start; the reason is in {_log_end(log)}")
        if time.monotonic() > end:
            raise VideoOPDError(
                f"{what} did not answer in {START_SECONDS:.0f} s; see {_log_end(log)}"
            )
        time.sleep(0.2)


def _wait_for_deployments(running: Running) -> None:
    """Until all are registered by this process and polled for; a former `up` left them as ready."""
    assert running.deployments is not None
    since = running.deployments.started

    def ready() -> bool:
        try:
            found = settings.get(f"{running.url}/deployments/filter", body={})
        except (OSError, ValueError):
            return False
        fresh = [d for d in found if datetime.fromisoformat(d["updated"]).timestamp() >= since]
        return bool(fresh) and all(d["status"] == "READY" for d in fresh)

    _wait(ready, running.deployments, "the deployments", "deployments.log")


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
            "serve the deployments of that server with `python -m flows.deployments`"
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


def _complete(running: Running) -> bool:
    return (
        running.server.find() is not None
        and running.deployments is not None
        and running.deployments.find() is not None
        and settings.answers(running.url)
    )


def _end(running: Running) -> int:
    # The deployments first, so that a run they end can still be reported to the server.
    ids = [p for p in (running.deployments, running.server) if p is not None]
    ended = stop(ids, _mark())
    for profile in (settings.home() / "profiles.toml", settings.profiles_elsewhere()):
        if profile is not None and _profile_url(profile) == running.url:
            profile.unlink()
    _state_file().unlink(missing_ok=True)
    return ended


def _publish_profile(url: str, say: Callable[[str], None]) -> None:
    """Let plain `prefect` commands find the server: in the project folder, and in any other one
    unless the user has a profile of their own there, or another checkout's server is up."""
    here = _write_profile(settings.home() / "profiles.toml", url)
    if not here or settings.home() != settings.project_root() / ".prefect":
        say(f"for `prefect` commands: export PREFECT_API_URL={url}")
        return
    elsewhere = settings.profiles_elsewhere()
    if elsewhere is not None and not _write_profile(elsewhere, url):
        say(f"for `prefect` commands in other folders: export PREFECT_API_URL={url}")


def _write_profile(file: Path, url: str) -> bool:
    """Whether `file` names the server now: not where it is somebody else's."""
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


def _read() -> Running | None:
    try:
        data = json.loads(_state_file().read_text())
        deployments = data["deployments"]
        return Running(
            data["url"],
            ProcessId(**data["server"]),
            ProcessId(**deployments) if deployments else None,
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise VideoOPDError(
            f"{_state_file()} cannot be read; end its processes by hand and remove the file"
        ) from None


def _write(running: Running) -> None:
    aside = _state_file().with_suffix(".part")
    aside.write_text(json.dumps(asdict(running), indent=1) + "\n")
    aside.replace(_state_file())


def _mark() -> str:
    return str(settings.home())


def _log_end(name: str) -> str:
    """Where the log is, and its last line."""
    path = settings.home() / name
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return f"{_short(path)}" + (f" (last line: {last})" if last else "")


def _page(api_url: str) -> str:
    return api_url.removesuffix("/api")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
