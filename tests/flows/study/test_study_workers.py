"""The processes of a study: one that dies fails its own request, and none outlives the study.

A request whose config is a named pipe holds its process until something is written there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.prefect_page.sending import PAGE
from flows.study.worker import RunRequest, started_workers

pytestmark = [pytest.mark.slow, pytest.mark.kill]  # a process imports Prefect
STUDY = """
import sys
from pathlib import Path
from flows.study.worker import RunRequest, started_workers
if __name__ == "__main__":
    with started_workers(2, Path(sys.argv[1])) as workers:
        workers({n: RunRequest(sys.argv[2 + n], [], 1) for n in (0, 1)}, print)
"""


def processes(of: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(of).children() if "spawn_main" in " ".join(p.cmdline())]


def held(folder: Path, count: int) -> list[Path]:
    pipes = [folder / f"pipe-{n}" for n in range(count)]
    for pipe in pipes:
        os.mkfifo(pipe)
    return pipes


def test_a_process_that_dies_fails_its_own_request_alone(tmp_path: Path) -> None:
    pipes = held(tmp_path, 2)
    absent = [tmp_path / f"absent-{n}.toml" for n in range(3)]
    errors: dict[Path, str | None] = {}
    pages: list[str] = []

    def kill_one_and_answer_the_other() -> None:
        writers = [pipe.open("w") for pipe in pipes]  # opens once a process reads it
        pages.append(processes(os.getpid())[0].environ()[PAGE])
        processes(os.getpid())[0].kill()
        for writer in writers:
            writer.write("no TOML")
            try:
                writer.close()
            except BrokenPipeError:
                pass  # the one that was killed had this

    threading.Thread(target=kill_one_and_answer_the_other, daemon=True).start()
    with started_workers(2, tmp_path / "workers.log") as workers:
        requests = {path: RunRequest(str(path), [], 1) for path in (*pipes, *absent)}
        workers(requests, errors.__setitem__)
        once_more: dict[Path, str | None] = {}
        workers({absent[0]: requests[absent[0]]}, once_more.__setitem__)
    assert errors.keys() == requests.keys()
    died, other = sorted((str(errors[pipe]) for pipe in pipes), key=lambda e: "ended with" not in e)
    assert died == f"its process ended with code -9; see {tmp_path / 'workers.log'}"
    assert "cannot be read as TOML" in other, "it worked on beside the one that died"
    assert all(f"there is no config at {path}" in str(errors[path]) for path in absent)
    assert once_more == {absent[0]: errors[absent[0]]}
    assert not processes(os.getpid())
    assert pages == ["0"], "its rounds are not on Prefect's page"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_study(tmp_path: Path, end: signal.Signals) -> None:
    script = tmp_path / "study.py"
    script.write_text(STUDY)
    pipes = held(tmp_path, 2)
    study = subprocess.Popen(
        [sys.executable, script, tmp_path / "workers.log", *pipes],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    writers = [pipe.open("w") for pipe in pipes]
    workers = processes(study.pid)
    assert len(workers) == 2
    began = time.monotonic()
    study.send_signal(end)
    study.communicate(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive and time.monotonic() - began < 20
    for writer in writers:
        writer.close()
