"""vLLM in a child process: `python -m opd_core.engines.vllm.child`.

An engine that shares its process with the stage would keep its memory after it, and a crash of its
kernels would take the stage along. So it gets a process of its own (and, with tensor parallelism, a
process group): started when a stage opens it, gone when the stage closes it, and killed by itself
when the stage's process is no more, however that ended.

The parent sends one video at a time, and gets one reply a batch. It may send the next batch before
it has the reply: a thread of the child reads what comes and runs vLLM's processor over it, while
the engine answers the last. The engine gets a batch whole and in order, so what it computes is the
same however fast they were.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from opd_core import child_process
from opd_core.child_process import Child, ChildCrash
from opd_core.engines import idle_time
from opd_core.engines.base import (
    Refused,
    Request,
    Sample,
    SamplingParams,
    Scored,
    ScoreRequest,
)
from opd_core.engines.crash import is_crash, told
from opd_core.engines.idle_time import EngineTime
from opd_core.engines.vllm.engine import (
    Prepared,
    VLLMEngine,
    VLLMPrompt,
    VLLMSettings,
    prepare_environment,
)
from opd_core.types import EngineCrashError, VideoOPDError

if TYPE_CHECKING:
    from opd_core.config.sections import ScoreSection

CLOSE_SECONDS = 20.0
"""For an orderly end (vLLM's workers, shared memory); then the child is killed."""
END = "end of the batch"
MEND = "free memory or correct the [vllm] section, and rerun the stage, which goes on where it was"


class ChildEngine(Child):
    """A `VLLMEngine` elsewhere. Starts at once, in the background; the first call waits for it.

    A context manager. A `VideoOPDError` about a batch leaves it ready for the next one; after any
    other exception it is dead.
    """

    name = "vllm"

    def __init__(self, settings: VLLMSettings, threads: int) -> None:
        environment = prepare_environment(settings.device, threads)
        super().__init__("opd_core.engines.vllm.child", environment=environment)
        self._opened: tuple[str, dict[str, int]] | None = None
        self._begun = self._answered = 0
        """Batches that were handed over, and those of which the reply is here."""
        self._replies: dict[int, tuple[str, object]] = {}
        """Those that were waited for past, by the number of their batch."""
        with _explained():
            self.send(settings)

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
            with _explained():
                status, content, _ = self.receive()
            self._opened = self._content(status, content)
        return self._opened

    def sample(
        self, videos: Sequence[Sequence[Request]], params: SamplingParams
    ) -> dict[Hashable, list[Sample] | Refused]:
        return self.begin_sampling(videos, params)()

    def begin_sampling(
        self, videos: Sequence[Sequence[Request]], params: SamplingParams
    ) -> Callable[[], dict[Hashable, list[Sample] | Refused]]:
        prompts = [
            [VLLMPrompt(r.key, r.prompt.text, _clip(r), r.seeds) for r in video] for video in videos
        ]
        number = self._begin("sample", params, prompts)
        return lambda: self._reply(number)

    def score(
        self, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
    ) -> Iterator[tuple[Hashable, Scored | Refused]]:
        return self.begin_scoring(videos, wanted)()

    def begin_scoring(
        self, videos: Sequence[Sequence[ScoreRequest]], wanted: ScoreSection
    ) -> Callable[[], Iterator[tuple[Hashable, Scored | Refused]]]:
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
        number = self._begin("score", wanted.teacher_topk, prompts)
        return lambda: iter(self._reply(number).items())

    def _begin(self, what: str, how: object, videos: Sequence[Sequence[VLLMPrompt]]) -> int:
        """Hand a batch over; returns its number."""
        self._open()
        with _explained():
            for message in ((what, how), *videos, END):
                self.send(message)
        self._begun += 1
        return self._begun

    def _reply(self, number: int) -> Any:
        """The reply to a batch; those to earlier ones are kept for who may still ask."""
        while self._answered < number:
            with _explained():
                status, content, passed = self.receive()
            self._answered += 1
            idle_time.passed(*passed)
            self._replies[self._answered] = (status, content)
        return self._content(*self._replies.pop(number))

    def _content(self, status: str, content: object) -> Any:
        if status == "done":
            return content
        if status == "refused":
            raise VideoOPDError(content)
        self.end()
        if status == "crashed":
            raise EngineCrashError(f"the vLLM process had no memory left ({content}); {MEND}")
        raise RuntimeError(f"the vLLM process failed:\n{content}")

    def close(self) -> None:
        """Ends it, its workers, and gives its memory back. May be called twice."""
        if not self.is_ended and self._begun == self._answered:  # else it has work for a while
            with contextlib.suppress(ChildCrash):
                self.send(None)
            self.wait(CLOSE_SECONDS)
        self.end()

    def __enter__(self) -> ChildEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, GeneratorExit):
            self.close()
        else:
            self.end()  # it may be in the middle of a batch


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A crash as what a user is told."""
    try:
        yield
    except ChildCrash as crash:
        how = ": ".join([crash.how, *filter(None, [" | ".join(crash.last_lines)])])
        raise told(crash, f"the vLLM process {how}; {MEND}") from None


def _clip(request: Request | ScoreRequest) -> Any:
    if request.prompt.clip is None:
        raise ValueError(f"the prompt of {request.key!r} has no frames, which vLLM needs")
    return request.prompt.clip


class _Batch:
    """What was asked, and the prompts as they come, prepared."""

    def __init__(self, what: str, how: object) -> None:
        self.what, self.how = what, how
        self.prompts: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Prepared]:
        while (prompt := self.prompts.get()) is not None:
            yield prompt


def _serve(connection: Connection) -> None:
    """The child: open the engine, then answer until the parent closes."""
    settings: VLLMSettings = connection.recv()
    try:
        engine = VLLMEngine(settings)
    except Exception as error:
        connection.send((*_problem(error), EngineTime()))
        return
    gc.freeze()
    gc.enable()
    connection.send(("done", (engine.version, engine.weights_compared), EngineTime()))
    batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
    # Of a daemon: where the parent is gone, nothing waits for it.
    threading.Thread(target=_read, args=(connection, engine, batches), daemon=True).start()
    while (batch := batches.get()) is not None:
        prompts = iter(batch)
        try:
            answer = ("done", getattr(engine, batch.what)(prompts, batch.how))
        except Exception as error:
            answer = _problem(error)
            engine.abort()
        for _ in prompts:  # what was not taken; the parent waits until it is read
            pass
        connection.send((*answer, engine.time))
        engine.time = EngineTime()
    engine.close()


def _read(
    connection: Connection, engine: VLLMEngine, batches: queue.SimpleQueue[_Batch | None]
) -> None:
    """Read what the parent sends, and prepare each prompt as it comes."""
    # EOFError, OSError: the parent is gone, or has killed the connection.
    try:
        with contextlib.suppress(EOFError, OSError):
            while (message := connection.recv()) is not None:
                batch = _Batch(*message)
                batches.put(batch)
                try:
                    while (video := connection.recv()) != END:
                        for prompt in video:
                            batch.prompts.put(engine.prepare(prompt))
                finally:
                    batch.prompts.put(None)
    finally:
        batches.put(None)


def _problem(error: Exception) -> tuple[str, str]:
    if (lost := next(filter(is_crash, (error, error.__cause__)), None)) is not None:
        return "crashed", str(lost).partition("\n")[0]
    if isinstance(error, VideoOPDError):
        return "refused", str(error)
    return "failed", "".join(traceback.format_exception(error))


def main() -> None:
    connection = child_process.connect()
    gc.disable()  # until the engine is open: vLLM makes two million objects on its way there
    # EOFError, OSError: the parent is gone, or has killed the connection.
    with contextlib.suppress(EOFError, OSError):
        _serve(connection)
    sys.stdout.flush()
    os._exit(0)  # interpreters that hold an engine take seconds to end


if __name__ == "__main__":
    main()
