"""The process of one tracker: `python -P -m flows.tracking.following RUN NAME PROJECT FOLDER`.

It follows the run through its tables until its input ends. A line of input says that a round is
finished; steps it sees by itself, in the file that the running update appends to. Whatever happens
here, the round goes on: it waits for nothing but, at its end and for a bounded time, for this
process to end.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from pathlib import Path

LOOK_SECONDS = 1.0


def main(run_path: str, name: str, project: str, folder: str, seconds: str) -> None:
    """Follow the run at `run_path`. What it raises ends this process alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the round; input ends with it
    os.nice(5)
    telling = None
    seen: object = None
    while True:
        ready, _, _ = select.select([0], [], [], LOOK_SECONDS)
        told = os.read(0, 4096) if ready else None
        if told == b"":
            _end_after(float(seconds))
        steps_now = _state(Path(run_path) / "trainer" / "running-steps.jsonl")
        if told is None and steps_now == seen:
            continue
        seen = steps_now
        if not (Path(run_path) / "run.json").exists():  # refused before there was one
            if told == b"":
                return
            continue
        from flows.tracking.telling import Telling
        from storage.runs.run import Run

        telling = telling or Telling(name, project, Path(folder))
        run = Run.open(run_path)
        if told is None:
            telling.steps(run)
        else:
            telling.all(run)
        if told == b"":
            telling.finish()
            return


def _state(file: Path) -> object:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _end_after(seconds: float) -> None:
    """Nobody may be left who would end this process: its parent was killed, too."""
    timer = threading.Timer(2 * seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
