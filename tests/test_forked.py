"""A process that is forked, imports and all, is what `subprocess` would have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest

from opd_core.child_process import PARENT_CHECK_SECONDS
from tests import forked

How = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[1]
TELL = """
import json, os, signal, sys, threading
print(json.dumps({
    "arguments": sys.argv, "name": __name__, "main": sys.modules["__main__"].__name__,
    "folder": os.getcwd(), "environment": dict(os.environ), "said": sys.stdin.read(),
    "handles": sorted(os.listdir("/proc/self/fd")), "leads": os.getsid(0) == os.getpid(),
    "signals": [str(signal.getsignal(s)) for s in signal.valid_signals()],
    "encodings": [sys.stdin.encoding, sys.stdout.encoding, sys.stderr.errors],
    "safe": sys.flags.safe_path, "threads": threading.active_count(),
}))
print("told", file=sys.stderr)
sys.exit(3)
"""


def ends(code: str, how: How) -> tuple[int, str, str]:
    done = how([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("session", [False, True])
def test_it_finds_what_any_process_finds(tmp_path: Path, session: bool) -> None:
    def told(how: How) -> tuple[int, str, str]:
        done = how(
            [sys.executable, "-c", TELL, "one", "two words"], cwd=tmp_path, input="heard",
            env=os.environ | {"MINE": "1", "PREFECT_HOME": "/nowhere"}, capture_output=True,
            text=True, start_new_session=session,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    assert told(forked.run) == told(subprocess.run)
    assert told(forked.run)[0] == 3


@pytest.mark.parametrize(
    "code", ["", "import sys; sys.exit('the reason')", "raise SystemExit", "import atexit\n"
             "atexit.register(print, 'at its end')\nprint('before', end='')",
             "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
)  # fmt: skip
def test_it_ends_as_any_process_ends(code: str) -> None:
    assert ends(code, forked.run) == ends(code, subprocess.run)


def test_it_is_its_askers_child_with_the_handles_it_was_given() -> None:
    ours, theirs = Pipe()
    code = f"""
import os, sys
from opd_core.child_process import connect
sys.argv = ["", "{theirs.fileno()}", "{os.getpid()}"]
connection = connect()
connection.recv()
connection.send(os.getppid())
"""
    with forked.Popen(
        [sys.executable, "-c", code], cwd=ROOT, start_new_session=True, pass_fds=(theirs.fileno(),)
    ) as process:
        theirs.close()
        time.sleep(2 * PARENT_CHECK_SECONDS)  # it ends where its parent is another
        ours.send("go on")
        assert ours.recv() == os.getpid()
    assert process.returncode == 0


def test_its_errors_and_interrupts_have_a_traceback() -> None:
    for code in ("1 / 0", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"):
        ours, theirs = (ends(code, how) for how in (forked.run, subprocess.run))
        assert ours[:2] == theirs[:2]
        assert ours[2].splitlines()[-1] == theirs[2].splitlines()[-1]


def test_its_imports_are_there_and_prefect_is_not() -> None:
    code = "import sys; print({'torch', 'lance', 'prefect'} & set(sys.modules))"
    before = ends(code, forked.run)[1]
    assert "torch" in before and "lance" in before and "prefect" not in before


def test_it_is_waited_for_and_killed() -> None:
    code = "import time\nprint('begun', flush=True)\ntime.sleep(99)"
    with forked.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert process.poll() is None and psutil.pid_exists(process.pid)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        process.kill()
        assert process.wait(timeout=10) == process.poll() == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=0.1)


def test_what_is_read_at_import_cannot_be_another(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="HF_HOME is read at import"):
        forked.run([sys.executable, "-c", ""], env=os.environ | {"HF_HOME": str(tmp_path)})


def test_a_fork_server_ends_with_whoever_began_it() -> None:
    server = forked.ForkServer("json", off=forked.Popen)
    assert server._process.poll() is None
    server._control.close()  # as the system does it for one that was killed
    assert server._process.wait(timeout=60) == 0
