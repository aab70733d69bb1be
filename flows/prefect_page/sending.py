"""Calls for what people look at: none where nobody will, and none that stops a stage.

The server of a single command ends with it, and with it all that it was told; so only one that
stays is told anything. VIDEOOPD_PREFECT_PAGE=1 tells any, 0 none.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from flows.console.progress import mention
from flows.server.prefect_settings import stays

Answer = TypeVar("Answer")

PAGE = "VIDEOOPD_PREFECT_PAGE"
CALL_SECONDS = 5.0
"""For one call; a stage waits for it."""
PAUSE_SECONDS = 60.0
"""After a call that failed, before the next is tried."""

_next_try = float("-inf")
_was_told = False


def in_flow() -> bool:
    """Whether a Prefect flow runs here. Imports nothing of Prefect where none does."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def is_shared() -> bool:
    """Whether a flow runs here whose server others see, too, and which outlives it."""
    if not in_flow():
        return False
    from prefect.settings import PREFECT_API_URL

    return os.environ.get(PAGE) == "1" or stays(PREFECT_API_URL.value())


def is_wanted() -> bool:
    """Whether somebody may look at what the flow that runs here says of itself."""
    return os.environ.get(PAGE) != "0" and is_shared()


def sent(call: Callable[[], Answer]) -> Answer | None:
    """What the API answers to what is told people; None where nobody looks, where it fails, and for
    a while after that."""
    if not is_wanted() or time.monotonic() < _next_try:
        return None
    return answered(call, "Prefect's page of this run is behind")


def answered(call: Callable[[], Answer], without: str) -> Answer | None:
    """What the API answers; None where it fails: the first time that is said, with what is then
    without it."""
    global _next_try, _was_told
    from prefect.settings import (
        PREFECT_API_REQUEST_TIMEOUT,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    brief = {PREFECT_API_REQUEST_TIMEOUT: CALL_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 0}
    try:
        with temporary_settings(brief):
            return call()
    except Exception as error:  # of the network, the server, the client: the work goes on
        _next_try = time.monotonic() + PAUSE_SECONDS
        if not _was_told:
            _was_told = True
            why = str(error).partition("\n")[0]
            mention(f"{without}: {type(error).__name__} ({why}); the work goes on")
        return None
