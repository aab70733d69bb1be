"""The worker processes of a study: started once, each given one request after the other.

A worker that dies fails the request it had and is started again for the next one. Workers end with
their standard input, which is closed when the study ends in any way, by SIGKILL too.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from flows.server.prefect_settings import working_folder
from flows.study.worker import RunRequest, WorldRequest, as_line

Key = TypeVar("Key")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip


class WorkerPool(Generic[Key]):
    """`jobs` processes; what they print goes to `folder/worker-<n>.log`."""

    def __init__(self, jobs: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._workers = [_Worker(folder / f"worker-{n}.log") for n in range(jobs)]

    def run(
        self,
        requests: Mapping[Key, WorldRequest | RunRequest],
        answered: Callable[[Key, str | None], None],
    ) -> None:
        """Give out all requests; `answered` is told each key with the error, or None, in this
        thread."""
        waiting: queue.Queue[tuple[Key, str]] = queue.Queue()
        for key, request in requests.items():
            waiting.put((key, as_line(request)))
        done: queue.Queue[tuple[Key, str | None]] = queue.Queue()

        def serve(worker: _Worker) -> None:
            while True:
                try:
                    key, line = waiting.get_nowait()
                except queue.Empty:
                    return
                done.put((key, worker.ask(line)))

        for worker in self._workers[: len(requests)]:
            threading.Thread(target=serve, args=(worker,), daemon=True).start()
        for _ in requests:
            answered(*_get(done))

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def _get(done: queue.Queue[tuple[Key, str | None]]) -> tuple[Key, str | None]:
    """Waits in short naps, so that Ctrl-C is heard."""
    while True:
        try:
            return done.get(timeout=0.5)
        except queue.Empty:
            continue


class _Worker:
    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def ask(self, line: str) -> str | None:
        """The error that a request ended with, or None."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            print(line, file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except (OSError, ValueError):  # ended meanwhile, or closed
            answer = ""
        if not answer:
            code = process.wait()
            self._process = None
            return f"its process ended with code {code}; see {self._log}"
        error: str | None = json.loads(answer)["error"]
        return error

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "flows.study.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=working_folder(),
                    env=os.environ | ONE_THREAD,
                )
        return self._process

    def close(self) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.close()
        except OSError:
            pass
        self._process.wait()
