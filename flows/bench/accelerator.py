"""One run on an accelerator: seconds, tokens a second, MFU and peak memory of sample, score and
update, of Qwen3-VL-2B and -8B shapes with random weights in bfloat16.

    videoopd bench accelerator --minutes 8

Each part runs in a process of its own, which is ended where the minutes are over or no row has come
for a while; where it then stood is told. So a kernel that hangs costs its part, not the run. On a
machine without CUDA a small shape runs, which shows that the script works and says nothing about
speed.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows.bench.interleaved import Row
from opd_core.child_process import Child, ChildCrash, ChildTimeout, connect

if TYPE_CHECKING:
    import torch

Part = Callable[[], Iterator[Row]]
MINUTES = 10.0
VIDEO_TOKENS = 8192
PATIENCE = 150.0
"""Seconds without a row after which a part is ended."""
STACK_SECONDS = 2.0
"""Before it is ended a part writes where it stands. Not now and then: the writing has been seen to
crash a process that goes on."""
CHILD = "flows.bench.accelerator"


def accelerator_rows(
    minutes: float = MINUTES, parts: Sequence[str] | None = None, patience: float = PATIENCE
) -> Iterator[Row]:
    """Rows of the parts (default: all that this machine can run), as they come; one that is ended
    gives a row that says so."""
    end = time.monotonic() + 60 * minutes
    known: dict[str, Row] = {}
    for name in parts or part_names():
        if time.monotonic() > end - STACK_SECONDS:
            yield Row(f"{name}: not begun", minutes, "minutes were over", "", None, {})
            continue
        for row in _rows_of(name, end, patience):
            known[row.name] = row
            yield row
    from flows.bench.paper_round import hours_rows

    yield from hours_rows(known, VIDEO_TOKENS)


def part_names() -> list[str]:
    """What this machine can run, in the order in which it does."""
    import torch

    return list(CUDA_PARTS) if torch.cuda.is_available() else list(CPU_PARTS)


def _rows_of(name: str, end: float, patience: float) -> Iterator[Row]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stacks = Path(folder) / "stacks"
        child = Child(CHILD, name, str(stacks))
        try:
            while True:
                deadline = min(end, time.monotonic() + patience)
                with _asked_at(child, deadline - STACK_SECONDS), child.killed_at(deadline):
                    row: Row | None = child.receive()
                if row is None:
                    return
                yield row
        except (ChildTimeout, ChildCrash) as error:
            # One that has not yet begun to listen dies of being asked.
            in_time = time.monotonic() < deadline - STACK_SECONDS
            how = str(error) if in_time else "no row in time"
            yield Row(
                f"{name}: ended before it was done", time.monotonic() - began, "s", how, False,
                {"stood at": _lines(stacks), "said last": getattr(error, "last_lines", [])},
            )  # fmt: skip
        finally:
            child.end()


@contextmanager
def _asked_at(child: Child, moment: float) -> Iterator[None]:
    """Ask the child where it stands if the block lasts until `moment`."""

    def ask() -> None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGUSR1)

    timer = threading.Timer(max(moment - time.monotonic(), 0), ask)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _lines(stacks: Path) -> list[str]:
    return stacks.read_text(errors="replace").splitlines()[:200] if stacks.exists() else []


def _shape(name: str, video_tokens: int, repetitions: int) -> Part:
    def rows() -> Iterator[Row]:
        from flows.bench import shapes
        from flows.bench.stage_speed import speed_rows

        return speed_rows(getattr(shapes, name), _device(), video_tokens, repetitions)

    return rows


def _round(name: str, count: int, seconds: int, width: int, height: int) -> Part:
    def rows() -> Iterator[Row]:
        from flows.bench import shapes
        from flows.bench.drawn_round import Videos, drawn_round_rows

        shape = getattr(shapes, name)
        return drawn_round_rows(shape, _device(), Videos(count, seconds, width, height))

    return rows


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _parity() -> Iterator[Row]:
    from flows.bench.parity import parity_rows

    return parity_rows()


CUDA_PARTS: dict[str, Part] = {
    "Qwen3-VL-8B": _shape("QWEN3_VL_8B", VIDEO_TOKENS, 2),
    "Qwen3-VL-8B, a round": _round("QWEN3_VL_8B", 2, 128, 480, 360),
    "Qwen3-VL-2B": _shape("QWEN3_VL_2B", VIDEO_TOKENS, 2),
    "float32": _parity,
}
CPU_PARTS: dict[str, Part] = {
    "small": _shape("SMALL", 256, 1),
    "small, a round": _round("SMALL", 2, 4, 64, 64),
    "float32": _parity,
}


def main() -> None:
    """A part, in the child: its rows go through the socket, None after the last."""
    import faulthandler

    connection = connect()
    name, stacks = sys.argv[3:5]
    file = Path(stacks).open("w")  # noqa: SIM115  (open while the process lives)
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
    for row in (CUDA_PARTS | CPU_PARTS)[name]():
        connection.send(row)
    connection.send(None)


if __name__ == "__main__":
    main()
