"""Runs rounds in a process that really dies, by SIGKILL, at a named moment; no hook in the product.

    python tests/flows/kill_points.py "before append:rollouts" 2 CONFIG     the flow, no server
    python tests/flows/kill_points.py --command "after publish" 1 CONFIG    `videoopd run CONFIG`
    python tests/flows/kill_points.py CONFIG                                the flow, undisturbed

A point is `before` or `after`, a target, and for `append` the table (for `write` the mode); the
number says which call.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.file_system import PROBE

TARGETS = {
    "append": ("storage.runs.run", "Run", "append"),  # append:TABLE
    "create": ("storage.tables.lance_tables", "Tables", "create"),
    "write": ("lance", None, "write_dataset"),  # write:append
    "sample": ("opd_core.engines.hf.sampling", "HFEngine", "sample"),
    "forward": ("opd_core.model.tree_model", "TreeModel", "hidden"),
    "step": ("opd_core.update.trained_model", "TrainedModel", "step"),
    "saved": ("opd_core.update.saved_step", "Saving", "step_made"),
    "save": ("opd_core.update.trained_model", "TrainedModel", "save"),
    "publish": ("storage.runs.run_policies", "RunPolicies", "publish_policy"),
    "rename": ("pathlib", "Path", "rename"),
    "record": ("storage.runs.marks", None, "record"),
    "remove": ("storage.runs.marks", None, "remove"),
    "finish": ("storage.runs.run", "Run", "finish_round"),
    "compact": ("storage.tables.lance_tables", "Tables", "compact"),
    "tag": ("storage.tables.lance_tables", "Tables", "tag"),
}


def arm(point: str, n: int) -> None:
    """Make this process kill itself at the n-th call of a target, before or after it."""
    when, what = point.split()
    target, _, kind = what.partition(":")
    module_name, class_name, name = TARGETS[target]
    owner: Any = importlib.import_module(module_name)
    if class_name:
        owner = getattr(owner, class_name)
    original = owner.__dict__[name]
    function = original.__func__ if isinstance(original, classmethod) else original
    calls = 0

    @functools.wraps(function)
    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if kind and kind not in (args[1], kwargs.get("mode")):
            return function(*args, **kwargs)
        if args and isinstance(args[0], Path) and PROBE in str(args[0]):
            return function(*args, **kwargs)  # the file system is tried, nothing of a run moves
        calls += 1
        if when == "before" and calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if when == "after" and calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, classmethod(deadly) if isinstance(original, classmethod) else deadly)


def run_without_server(config: str, rounds: int = 1, overrides: Sequence[str] = ()) -> Any:
    """The flow's own function with the stages' own functions: the same loop, no Prefect server."""
    from flows import round as loop
    from flows import stages
    from storage.stages import STAGES

    for name in STAGES:
        setattr(loop, name, getattr(stages, name).fn)
    try:
        return loop.videoopd.fn(config, rounds, list(overrides))
    finally:
        for name in STAGES:
            setattr(loop, name, getattr(stages, name))


def main(arguments: Sequence[str]) -> None:
    command = arguments[0] == "--command"
    *killed, config = arguments[1:] if command else arguments
    if killed:
        point, n = killed
        arm(point, int(n))
    if command:
        from flows.cli import main as videoopd

        sys.exit(videoopd(["run", config]))
    run_without_server(config)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(sys.argv[1:])
