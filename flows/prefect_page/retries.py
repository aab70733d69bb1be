"""Once more, where what computes has crashed: a stage goes on from its rows, nothing is lost.

Everything else would fail again: a gate, an audit, a config, data.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from flows.console.progress import mention
from opd_core.engines.crash import is_crash

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun

RETRIES = 1


def after_a_crash(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Prefect's `retry_condition_fn`: whether a stage that failed is to be tried again."""
    error = state.data
    if not isinstance(error, BaseException) or not is_crash(error):
        return False
    why = str(error).partition("\n")[0]
    mention(f"{run.name}: {why}; trying once more")
    before: BaseException | None = error
    while before is not None:
        # What its frames hold (a model) would lie in memory beside that of the next attempt.
        traceback.clear_frames(before.__traceback__)
        before = before.__context__
    return True


def is_another_attempt() -> bool:
    """Whether the task that runs here has failed before."""
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    return context is not None and context.task_run.run_count > 1
