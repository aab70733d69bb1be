"""The connection to Ray: started on this machine or joined, by whoever asks first, once a process.

with connected(config):
    ...             # ray.remote, ray.get
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import cast

from opd_core.cluster.resources import cluster_of, of_worker, refuse_too_few
from opd_core.config.load import Config
from opd_core.types import VideoOPDError

OBJECT_STORE_BYTES = 200 << 20
"""Of a Ray that we start: a few batches are on their way at a time, and what is more goes to disk.
Ray's own choice, a third of the memory, is for data that lives there."""
PATIENCE_SECONDS = 5.0
"""For an address to answer."""

_guard = threading.RLock()
_users = 0
_is_ours = False
"""Whether the connection was made here, and is to be ended here."""


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Ray, for the block: what `[cluster]` says, or what this process is connected to already.

    Raises `VideoOPDError` where Ray is not installed, the address does not answer, or the cluster
    has less than the workers need.
    """
    global _is_ours
    with staying_connected():
        with _guard:
            ray = _installed()
            if not ray.is_initialized():
                _is_ours = True
                _connect(config)
            refuse_too_few(config, ray.cluster_resources())
        yield


@contextmanager
def staying_connected() -> Iterator[None]:
    """Keep a connection that begins within the block until its end: the stages of a run share it.

    Costs nothing where none begins.
    """
    global _users
    with _guard:
        _users += 1
    try:
        yield
    finally:
        with _guard:
            _users -= 1
            if not _users:
                _disconnect()


def _installed() -> ModuleType:
    if find_spec("ray") is None:
        raise VideoOPDError(
            "[cluster] needs Ray, which is not installed here; install it with "
            '`pip install "videoopd[cluster]"`, or remove the section'
        )
    import ray

    return cast(ModuleType, ray)


def _connect(config: Config) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    section = cluster_of(config)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if section.address is None:
        # Ray's own choice is 15: whatever else runs here would then come before the workers, and
        # they do what this process does where there is no [cluster].
        os.environ.setdefault("RAY_worker_niceness", "0")
        if section.dashboard:
            _refuse_incomplete()
        cores = section.workers * of_worker(config, cards_there=math.inf).cores
        with _on_loopback(), warnings.catch_warnings():
            # Lance warns of any fork, also of one that another program follows.
            warnings.filterwarnings("ignore", "lance is not fork-safe")
            context = ray.init(
                "local",  # RAY_ADDRESS does not count
                num_cpus=max(cores, os.cpu_count() or 1),
                include_dashboard=section.dashboard,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        if section.dashboard:
            where = f"http://{context.dashboard_url}"
            asks = "asks for what `ray get-auth-token` prints"
            print(f"Ray's dashboard: {where}, {asks}", file=sys.stderr, flush=True)
        return
    fix = "start it there (`ray start --head`), or correct or remove cluster.address"
    if section.address != "auto":
        _refuse_silent(section.address, fix)
    _show_token()
    try:
        ray.init(section.address, **quiet)
    except ConnectionError as error:
        first = str(error).splitlines()[0]
        raise VideoOPDError(
            f"cluster.address = {section.address!r}: {first.rstrip('.')}; {fix}, and compare "
            "~/.ray/auth_token with that of the cluster"
        ) from None


def _refuse_incomplete() -> None:
    """Ray itself would print a traceback."""
    from ray._private.utils import get_dashboard_dependency_error

    if (missing := get_dashboard_dependency_error()) is not None:
        raise VideoOPDError(
            f"cluster.dashboard = true needs packages that are not installed here ({missing}); "
            'install them with `pip install "videoopd[cluster]"`, or remove the setting'
        )


def _show_token() -> None:
    """Clusters ask for a token since Ray 2.60; who joins one has to be told to show it."""
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available as show,
    )

    logging.getLogger(show.__module__).setLevel(logging.ERROR)
    show(warn_if_disabled=False)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts meanwhile listens on 127.0.0.1 alone, as by default on macOS and Windows
    (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, which it reads when it is imported)."""
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _refuse_silent(address: str, fix: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise VideoOPDError(
            f"cluster.address = {address!r} is no address; write 'auto' or 'host:port'"
        )
    try:
        socket.create_connection((host, int(port)), PATIENCE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise VideoOPDError(
            f"cluster.address = {address!r} does not answer ({error}); {fix}"
        ) from None


def _disconnect() -> None:
    global _is_ours
    if _is_ours and (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()
    _is_ours = False
