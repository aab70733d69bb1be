"""A stage as it is called: begun in the run, timed, and inside a Prefect flow a task.

Prefect's result cache stays off: it survives in the home folder and would report work as done whose
tables are gone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from flows.prefect_page import retries
from flows.prefect_page.artifacts import stage_artifact
from flows.prefect_page.gpu_limit import in_line
from flows.prefect_page.progress import progress_artifact
from flows.prefect_page.sending import in_flow
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
        if not in_flow():
            return self.fn(work, policy, force)
        named = self._task.with_options(task_run_name=self._title(policy))
        return named(work, policy, force)

    @functools.cached_property
    def _task(self) -> Task[..., StageSummary]:
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        return task(
            name=self.__name__,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=retries.RETRIES,
            retry_condition_fn=retries.after_a_crash,
        )(self._in_prefect)

    def _in_prefect(self, work: Work, policy: Policy, force: bool) -> StageSummary:
        """As a task: in line for its cards, and with what people see of it on Prefect's page."""
        if retries.is_another_attempt():
            force = False  # it goes on with the take that the crashed one has begun
        name, run = self.__name__, work.run.path.name
        with in_line(work.config, name) as wait, progress_artifact(run, self._title(policy)):
            done = self.fn(replace(work, begins=wait), policy, force)
        stage_artifact(run, round_number(name, policy.version), done)
        return done

    def _title(self, policy: Policy) -> str:
        """`rollout-round-3`."""
        return f"{self.__name__}-round-{round_number(self.__name__, policy.version)}"


def _begun_and_timed(
    body: Callable[[Work, Policy, Begun], Done],
) -> Callable[[Work, Policy, bool], StageSummary]:
    def stage(work: Work, policy: Policy, force: bool = False) -> StageSummary:
        begun = work.run.begin(name, policy.version, config_words, force)
        if begun.again:
            work.about_to_work()
        with measuring(work.run.path, name, policy.version) as measured_now:
            measured_now.done = done = body(work, policy, begun)
            use, seconds = measured_now.use(), measured_now.seconds
        summary = StageSummary(
            stage=name,
            policy_version=policy.version,
            rows=done.rows,
            items=done.items,
            seconds=seconds,
            copied=done.copied,
            mismatch=done.mismatch,
            use=use,
        )
        return summary.noting(**done.notes)

    name = stage.__name__ = stage.__qualname__ = body.__name__
    stage.__doc__, stage.__module__ = body.__doc__, body.__module__
    return stage
