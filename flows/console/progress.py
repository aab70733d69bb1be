"""Progress of anything that takes longer than two seconds: a bar on a terminal, lines elsewhere.

    with progress("rollout", total=256) as advance:
        for batch in batches:
            ...
            advance(len(batch), saying="loss 0.62")

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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

SECONDS_PER_LINE = 10.0
SAYING = 33
"""Letters of what is said beside a bar on a terminal of 80 columns."""
QUIET = "VIDEOOPD_QUIET"


class Advance(Protocol):
    def __call__(self, count: int, saying: str = "", made_before: bool = False) -> None:
        """So many are newly done; `saying` is how the last one was. `made_before`: by an earlier
        process, which says nothing of how long the rest will take."""


Watch = Callable[[str, int], AbstractContextManager[Advance]]
"""(what, total) -> what is told of each advance, beside the terminal."""
_watches: list[Watch] = []


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
def watched(watch: Watch) -> Iterator[None]:
    """Show what `progress` shows meanwhile in another place, too; also where it is quiet here."""
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show how far `what` is; the yielded function is told how many of `total` are newly done."""
    with ExitStack() as shown:
        wanted = (_here, *_watches) if total > 0 else ()
        places = [shown.enter_context(show(what, total)) for show in wanted]

        def advance(count: int, saying: str = "", made_before: bool = False) -> None:
            for place in places:
                place(count, saying, made_before)

        yield advance


@contextmanager
def _here(what: str, total: int) -> Iterator[Advance]:
    in_test = "PYTEST_CURRENT_TEST" in os.environ and os.environ.get("VIDEOOPD_PROGRESS") != "1"
    if is_quiet() or in_test:
        yield lambda count, saying="", made_before=False: None
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
    from rich.table import Column

    whole = Column(no_wrap=True, min_width=7)  # on a narrow terminal the bar is what gets shorter
    bar = rich.Progress(
        "{task.description:<8}",
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(table_column=whole),
        "left",
        rich.TimeRemainingColumn(table_column=whole.copy()),
        console=Console(stderr=True),
        transient=True,
    )
    plain = len(bar.columns)
    with bar:
        task = bar.add_task(what, total=total, saying="")

        def advance(count: int, saying: str = "", made_before: bool = False) -> None:
            if made_before:
                bar.reset(task, total=total, completed=count)
                return
            if saying and len(bar.columns) == plain:
                column = Column(no_wrap=True, min_width=SAYING)
                bar.columns += (rich.TextColumn("{task.fields[saying]}", table_column=column),)
            bar.update(task, advance=count, saying=saying)

        yield advance


def _lines(what: str, total: int) -> Advance:
    begun = last = time.monotonic()
    done = before = 0

    def advance(count: int, saying: str = "", made_before: bool = False) -> None:
        nonlocal begun, done, last, before
        done = min(total, done + count)  # resumed work may count what was done before
        now = time.monotonic()
        if made_before:
            before, begun = done, now
        elif now - last >= SECONDS_PER_LINE:
            last = now
            made = done - before
            left = f"{(now - begun) / made * (total - done):.0f} s left" if made else "nan s left"
            how = f"; {saying}" if saying else ""
            print(f"{what}: {done}/{total}, about {left}{how}", file=sys.stderr, flush=True)

    return advance
