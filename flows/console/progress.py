"""Progress of anything that takes longer than two seconds: a bar on a terminal, lines elsewhere.

    with progress("rollout", total=256) as advance:
        for batch in batches:
            ...
            advance(len(batch))

Off a terminal (a log file, a flow served by Prefect) it writes a line about every ten seconds, and
nothing at all for what is quicker. Under pytest it is silent unless VIDEOOPD_PROGRESS=1. `waiting`
is for what cannot be counted. `quietly(True)` is `videoopd -q`: none of it, here and in processes
that are started meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
SECONDS_PER_LINE = 10.0
QUIET = "VIDEOOPD_QUIET"


@contextmanager
def quietly(wanted: bool) -> Iterator[None]:
    """Show nothing on the way meanwhile, if that is wanted."""
    before = os.environ.get(QUIET)
    if wanted:
        os.environ[QUIET] = "1"
    try:
        yield
    finally:
        if wanted and before is None:
            del os.environ[QUIET]


def is_quiet() -> bool:
    return os.environ.get(QUIET) == "1"


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show how far `what` is; the yielded function is told how many of `total` are newly done."""
    in_test = "PYTEST_CURRENT_TEST" in os.environ and os.environ.get("VIDEOOPD_PROGRESS") != "1"
    if total <= 0 or is_quiet() or in_test:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        yield _lines(what, total)


def mention(line: str) -> None:
    """Say something on the way, beside a bar where there is one."""
    if not is_quiet():
        print(line, file=sys.stderr, flush=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a sign of life on a terminal, for a wait whose length is not known."""
    if is_quiet() or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich import progress as rich
    from rich.console import Console

    bar = rich.Progress(
        "{task.description:<12}",
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        "left",
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _lines(what: str, total: int) -> Advance:
    begun = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done = min(total, done + count)  # resumed work may count what was done before
        now = time.monotonic()
        if now - last >= SECONDS_PER_LINE:
            last = now
            seconds = (now - begun) / done * (total - done) if done else float("nan")
            print(
                f"{what}: {done}/{total}, about {seconds:.0f} s left", file=sys.stderr, flush=True
            )

    return advance
