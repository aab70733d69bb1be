"""vLLM in a child process: `python -m opd_core.engines.vllm.child`.

An engine that shares its process with the stage would keep its memory after it, and a crash of its
kernels would take the stage along. So it gets a process of its own (and, with tensor parallelism, a
process group): started when a stage opens it, gone when the stage closes it, and killed by itself
when the stage's process is no more, however that ended.

The parent sends pickled messages through a pair of sockets, one video at a time, and gets one reply
a batch. Pickle is safe here: nobody else can write to an unnamed socket. What the child prints goes
into a file, whose last lines explain a crash.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Hashable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd_core.engines.base import (
    Refused,
    Request,
    Sample,
    SamplingParams,
    Scored,
    ScoreRequest,
)
from opd_core.engines.vllm.engine import (
    VLLMEngine,
    VLLMPrompt,
    VLLMSettings,
    prepare_environment,
)
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from opd_core.config.sections import ScoreSection

PARENT_CHECK_SECONDS = 0.5
CLOSE_SECONDS = 20.0
"""For an orderly end (vLLM's workers, shared memory); then the child is killed."""
END = "end of the batch"


class ChildEngine:
    """A `VLLMEngine` elsewhere. Starts at once, in the background; the first call waits for it.

    A context manager. A `VideoOPDError` about a batch leaves it ready for the next one; after any
    other exception it is dead.
    """

    name = "vllm"

    def __init__(self, settings: VLLMSettings, threads: int) -> None:
        ours, theirs = socket.socketpair()
        package_root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "opd_core.engines.vllm.child", str(theirs.fileno()),
             str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | prepare_environment(settings.device, threads) | {"PYTHONPATH": path},
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._connection = Connection(ours.detach())
        self._opened: tuple[str, dict[str, int]] | None = None
        self._send(settings)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def version(self) -> str:
        """Waits until the engine is open. Raises `VideoOPDError` when it cannot be opened."""
        return self._open()[0]

    @property
    def weights_compared(self) -> dict[str, int]:
        """How many tensors of `vision` and `language` were found to be those of the folder."""
        return self._open()[1]

    def _open(self) -> tuple[str, dict[str, int]]:
        if self._opened is None:
            self._opened = self._receive()
        return self._opened

    def sample(
        self, videos: Sequence[Sequence[Request]], params: SamplingParams
    ) -> dict[Hashable, list[Sample] | Refused]:
        prompts = [
            [VLLMPrompt(r.key, r.prompt.text, _clip(r), r.seeds) for r in video] for video in videos
        ]
        answers: dict[Hashable, list[Sample] | Refused] = self._ask("sample", params, prompts)
        return answers

    def score(
        self, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
    ) -> Iterator[tuple[Hashable, Scored | Refused]]:
        prompts = [
            [
                VLLMPrompt(
                    r.key,
                    r.prompt.text,
                    _clip(r),
                    completions=tuple((key, tuple(ids)) for key, ids in r.answers.items()),
                )
                for r in video
            ]
            for video in videos
        ]
        scores: dict[Hashable, Scored | Refused] = self._ask("score", wanted.teacher_topk, prompts)
        yield from scores.items()

    def _ask(self, what: str, how: Any, videos: Sequence[Sequence[VLLMPrompt]]) -> Any:
        self._open()
        self._send((what, how))
        for video in videos:
            self._send(video)
        self._send(END)
        return self._receive()

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._lost() from None

    def _receive(self) -> Any:
        try:
            status, content = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if status == "done":
            return content
        if status == "refused":
            raise VideoOPDError(content)
        self.kill()
        raise RuntimeError(f"the vLLM process failed:\n{content}")

    def _lost(self) -> VideoOPDError:
        """It is gone: say why."""
        self.kill()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        code = self._process.returncode
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        last = f": {' | '.join(lines[-3:])}" if lines else ""
        return VideoOPDError(
            f"the vLLM process {how}{last}; free memory or correct the [vllm] section, and rerun "
            "the stage, which goes on where it was"
        )

    def close(self) -> None:
        """Ends it, its workers, and gives its memory back. May be called twice."""
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                self._connection.send(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        if self._process.returncode is None:
            # Its own session: the group is the child and vLLM's workers.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._connection.close()

    def __enter__(self) -> ChildEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, GeneratorExit):
            self.close()
        else:
            self.kill()  # it may be in the middle of a batch


def _clip(request: Request | ScoreRequest) -> Any:
    if request.prompt.clip is None:
        raise ValueError(f"the prompt of {request.key!r} has no frames, which vLLM needs")
    return request.prompt.clip


def _serve(connection: Connection) -> None:
    """The child: open the engine, then answer until the parent closes."""
    settings: VLLMSettings = connection.recv()
    try:
        engine = VLLMEngine(settings)
    except Exception as error:
        connection.send(_problem(error))
        return
    gc.freeze()
    gc.enable()
    connection.send(("done", (engine.version, engine.weights_compared)))
    while (message := connection.recv()) is not None:
        what, how = message
        videos = _videos(connection)
        try:
            answer = ("done", getattr(engine, what)(videos, how))
        except Exception as error:
            answer = _problem(error)
            engine.abort()
        for _ in videos:  # what was not read; the parent waits until it is
            pass
        connection.send(answer)
    engine.close()


def _videos(connection: Connection) -> Iterator[Sequence[VLLMPrompt]]:
    while (video := connection.recv()) != END:
        yield video


def _problem(error: Exception) -> tuple[str, str]:
    if isinstance(error, VideoOPDError):
        return "refused", str(error)
    return "failed", "".join(traceback.format_exception(error))


def _end_with(parent: int) -> None:
    """Kill the process group once the parent is gone."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    handle, parent = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(handle, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # until the engine is open: vLLM makes two million objects on its way there
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # EOFError, OSError: the parent is gone, or has killed the connection.
    with contextlib.suppress(EOFError, OSError):
        _serve(Connection(handle))
    sys.stdout.flush()
    os._exit(0)  # interpreters that hold an engine take seconds to end


if __name__ == "__main__":
    main()
