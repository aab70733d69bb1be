"""`videoopd view`: a server on loopback for whoever has the key, until it is stopped."""

from __future__ import annotations

import getpass
import os
import secrets
import signal
import socket
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from storage.runs.run import Run

HOST = "127.0.0.1"
USUAL_PORT = 8470
"""Taken where nothing else has it, so that a tunnel can be set up once."""


def view(runs: Sequence[Run], port: int | None, browser: bool) -> None:
    """Serve the pages of `runs` until Ctrl-C; prints the address, and how to reach it by SSH."""
    import uvicorn

    from flows.view.app import make_app
    from flows.view.place import Place

    listening = listen(port)
    number: int = listening.getsockname()[1]
    key = secrets.token_urlsafe(24)
    address = f"http://{HOST}:{number}/?key={key}"
    place = Place(runs)
    for name in place.shown:  # what is slow once is done before somebody waits for a page
        place.state(name)
    app = make_app(place, key, number)
    end_tidily()
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                       lifespan="off", timeout_graceful_shutdown=1)
    )  # fmt: skip
    print(f"{address}\n{hint(os.environ, number)}", flush=True)
    if browser and shows_windows(os.environ):
        webbrowser.open(address)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # how one ends it
        print(file=sys.stderr)


def end_tidily() -> None:
    """Let SIGTERM, and the terminal that is closed, end this process as Ctrl-C does: what was kept
    in temporary files goes away, and so does the process that answers `where`."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else it is of nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def listen(port: int | None) -> socket.socket:
    """A socket that listens on loopback: at `port`, or where one is free.

    Raises `VideoOPDError` where `port` is taken.
    """
    if port is not None:
        try:
            return _bound(port)
        except OSError as error:
            raise VideoOPDError(
                f"port {port} cannot be used ({error.strerror}); give another --port, or none"
            ) from None
    try:
        return _bound(USUAL_PORT)
    except OSError:
        return listen_anywhere()


def listen_anywhere() -> socket.socket:
    """A socket that listens on loopback at a port that nobody has."""
    return _bound(0)


def _bound(port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((HOST, port))
        opened.listen(128)
    except BaseException:
        opened.close()
        raise
    return opened


def hint(environment: Mapping[str, str], port: int) -> str:
    """Say how to get there: Ctrl-C ends it, and over SSH the tunnel that the browser needs."""
    words = environment.get("SSH_CONNECTION", "").split()
    if len(words) != 4:
        return "Ctrl-C ends it"
    other_port = f"-p {words[3]} " if words[3] != "22" else ""
    tunnel = f"ssh -N -L {port}:{HOST}:{port} {other_port}{getpass.getuser()}@{words[2]}"
    return f"from your own machine, first: {tunnel}\nCtrl-C ends it"


def shows_windows(environment: Mapping[str, str]) -> bool:
    """Whether a browser that is opened here is one that the user sees."""
    if "SSH_CONNECTION" in environment:
        return False
    return sys.platform != "linux" or bool(
        environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    )
