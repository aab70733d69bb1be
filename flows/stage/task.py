"""A stage as it is called: begun in the run, timed, and inside a Prefect flow a task.

Prefect's result cache stays off: it survives in the home folder and would report work as done whose
tables are gone.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from flows.stage.costs import measured
from flows.stage.prepare import Work
from flows.stage.typed_config import config_words
from flows.stage.uses import measuring
from flows.summaries import Done, StageSummary
from opd_core.types import Policy
from storage.runs.begun import Begun
from storage.stages import round_number

if TYPE_CHECKING:
    from prefect import Task


class StageFunction:
    """Inside a Prefect flow a task, elsewhere the function itself, which is `fn`.

    Its cost is recorded where somebody wants it.
    """

    __name__: str

    def __init__(self, body: Callable[[Work, Policy, Begun], Done]) -> None:
        whole = _begun_and_timed(body)
        functools.update_wrapper(self, whole)
        self.fn = measured(whole)

    def __call__(self, work: Work, policy: Policy, force: bool = False) -> StageSummary:
        if not _in_flow():
            return self.fn(work, policy, force)
        number = round_number(self.__name__, policy.version)
        named = self._task.with_options(task_run_name=f"{self.__name__}-round-{number}")
        return named(work, policy, force)

    @functools.cached_property
    def _task(self) -> Task[..., StageSummary]:
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        return task(cache_policy=NO_CACHE, persist_result=False)(self.fn)


def _begun_and_timed(
    body: Callable[[Work, Policy, Begun], Done],
) -> Callable[[Work, Policy, bool], StageSummary]:
    def stage(work: Work, policy: Policy, force: bool = False) -> StageSummary:
        started = time.perf_counter()
        begun = work.run.begin(name, policy.version, config_words, force)
        if begun.again:
            work.about_to_work()
        with measuring(work.run.path, name, policy.version) as measured_now:
            measured_now.done = done = body(work, policy, begun)
        seconds = time.perf_counter() - started
        summary = StageSummary(name, policy.version, done.rows, done.items, seconds)
        return summary.noting(**done.notes)

    name = stage.__name__ = stage.__qualname__ = body.__name__
    stage.__doc__, stage.__module__ = body.__doc__, body.__module__
    return stage


def _in_flow() -> bool:
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None
