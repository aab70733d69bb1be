"""Runs rounds in a process that really dies, by SIGKILL, at a named moment; no hook in the product.

    python tests/flows/kill_points.py "before append:rollouts" 2 CONFIG     the flow, no server
    python tests/flows/kill_points.py --command "after publish" 1 CONFIG    `videoopd run CONFIG`
    python tests/flows/kill_points.py --serve                               many, from stdin

A point is `before` or `after`, a target, and for `append` the table (for `write` the mode); the
number says which call.
`--serve` imports everything once and forks a process for each request, a JSON line
`{"config", "log", "rounds", "overrides", "point", "n", "seconds"}`, which saves five seconds a run;
its parent never opens a table or runs a model, so nothing of them is carried over the fork.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import time
import traceback
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


def serve() -> None:
    """Answer each request with a line: the exit code, negative for a signal."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    _import_all()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run_request(request)
        print(_wait(pid, request.get("seconds")), file=replies, flush=True)


def _import_all() -> None:
    from opd_core import torchvision_guard

    torchvision_guard.install()
    for name in (
        "lance", "polars", "peft", "flows.round", "opd_core.update.student",
        "opd_core.engines.hf.sampling", "opd_core.scoring.trees",
        "transformers.models.qwen3_vl.modeling_qwen3_vl",
        "transformers.models.qwen3_vl.processing_qwen3_vl",
    ):  # fmt: skip
        importlib.import_module(name)


def _run_request(request: dict[str, Any]) -> None:
    code = 1
    try:
        with Path(request["log"]).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if request.get("point"):
            arm(request["point"], request["n"])
        run_without_server(request["config"], request.get("rounds", 1), request["overrides"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, seconds: float | None) -> int:
    """Exit code of the child, which is killed after `seconds`."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)
            end = None
        time.sleep(0.005)


def main(arguments: Sequence[str]) -> None:
    if arguments == ["--serve"]:
        serve()
        return
    command = arguments[0] == "--command"
    point, n, config = arguments[1:] if command else arguments
    arm(point, int(n))
    if command:
        from flows.cli import main as videoopd

        sys.exit(videoopd(["run", config]))
    run_without_server(config)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(sys.argv[1:])
