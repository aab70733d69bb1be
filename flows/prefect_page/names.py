"""Names of flow runs as they begin: `tiny-round-3`, `tiny-rounds-3-5`, `tiny-score-round-3`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opd_core.config.load import load_config
from storage.runs.run import Run
from storage.runs.run_folder import RUN_FILE
from storage.stages import round_number

UNKNOWN = "videoopd"
"""Of a flow that cannot begin: it says what is wrong itself."""


def of_rounds() -> str:
    """Prefect's `flow_run_name`: the round to go on with, or to begin, and those after it."""

    def name(given: Mapping[str, Any]) -> str:
        run, underway, _ = _run(given)
        first, last = underway + 1, underway + given["rounds"]
        return f"{run}-round-{first}" if first == last else f"{run}-rounds-{first}-{last}"

    return _named(name)


def of_stage(stage: str) -> Callable[[], str]:
    """Prefect's `flow_run_name`: the stage, in the round that is asked for, or the current one."""

    def name(given: Mapping[str, Any]) -> str:
        run, _, newest = _run(given)
        asked = given["round"]
        return f"{run}-{stage}-round-{round_number(stage, newest) if asked is None else asked}"

    return lambda: _named(name)


def _named(name: Callable[[Mapping[str, Any]], str]) -> str:
    from prefect.runtime import flow_run

    try:
        return name(flow_run.parameters)
    except Exception:  # no config, a damaged run: the flow itself will say so, in its own words
        return UNKNOWN


def _run(given: Mapping[str, Any]) -> tuple[str, int, int]:
    """Its name, the policy that its round samples from, and its newest one; 0 of one that is not
    there yet."""
    path = load_config(given["config"], given["overrides"] or ()).run.path
    if not (path / RUN_FILE).exists():
        return path.name, 0, 0
    run = Run.open(path)
    return path.name, run.version_of_round(), run.newest_version()
