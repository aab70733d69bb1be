"""`videoopd study FILE`: the runs of a study, and what they say, as a table, plots and numbers.

    videoopd study configs/studies/claims.toml --jobs 2
    videoopd study configs/studies/claims.toml --quick
    videoopd study configs/studies/claims.toml --arms grpo opd-1    these arms now, others later
    videoopd study configs/studies/claims.toml --report      from the rows, running nothing

First the worlds, then the tuning runs, then every arm with its best learning rate on every seed.
Each run is a run like any other (`flows/round.py`), in a folder of its own. A run that has its
rounds is not run again, one that was killed goes on where it was, one that fails is reported and
the others go on.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console.progress import progress
from flows.study.curves import Result, tuning_means
from flows.study.plan import Plan, StudyRun, load_study
from flows.study.rows import is_complete, read_result
from flows.study.worker import RunRequest, Workers, WorldRequest, started_workers
from opd_core.types import VideoOPDError
from storage.files import make_folder, write_json

if TYPE_CHECKING:
    from flows.study.evidence import Evidence

SESSIONS_FILE, LOG_FILE = "sessions.json", "workers.log"


@dataclass(frozen=True, slots=True)
class StudyOptions:
    file: Path
    quick: bool
    jobs: int
    report: bool
    arms: tuple[str, ...]
    """Run these only; none named: all. The report is of all."""
    runs: Path
    """Folder of the studies' worlds and runs."""
    out: Path
    """Folder of the report."""


def study(options: StudyOptions) -> int:
    """Run what is missing, then write the reports; the exit code, 1 where a run is missing."""
    _check_installed()
    plans = load_study(options.file, options.runs, quick=options.quick)
    for arm in options.arms:
        if not any(arm in plan.study.arms for plan in plans):
            plans[0].check_arm(arm)
    failed = {} if options.report else _run_all(plans, options)
    evidence = {plan.name: _evidence(plan, failed.get(plan.name, {})) for plan in plans}
    there = [of_one for of_one in evidence.values() if of_one is not None]
    if not there:
        raise VideoOPDError(
            f"the study in {plans[0].root} has no complete run to report; run `videoopd study "
            f"{options.file}{' --quick' if options.quick else ''}`"
        )
    code = _report(there, options.out)
    for name in (name for name, of_one in evidence.items() if of_one is None):
        print(f"missing: {name}: it has no complete run", file=sys.stderr)
        code = 1
    return code


def _check_installed() -> None:
    """Raises `VideoOPDError` before hours of runs, not after them."""
    absent = [name for name in ("matplotlib", "pebble", "scipy") if find_spec(name) is None]
    if absent:
        raise VideoOPDError(
            f"a study needs {', '.join(absent)}, not installed here; pip install 'videoopd[study]'"
        )


def _run_all(plans: Sequence[Plan], options: StudyOptions) -> dict[str, dict[StudyRun, str]]:
    """Everything that is missing; of each plan the runs that failed, with the reason."""
    # A wrong setting or a foreign folder is found before a server is started.
    unfinished = [
        plan
        for plan in plans
        if missing_runs(plan, options, plan.tuning_runs())
        or missing_runs(plan, options, plan.runs(best_rates(plan)))
    ]
    if not unfinished:
        return {}
    began = time.monotonic()
    from flows.launch import quiet_server

    wait_for_server = quiet_server()
    failed: dict[str, dict[StudyRun, str]] = {}
    for plan in unfinished:
        make_folder(plan.root)
    with started_workers(options.jobs, unfinished[0].root / LOG_FILE) as workers:
        for plan in unfinished:
            _note_session(plan)
            _make_worlds(plan, workers)
            wait_for_server()
            tuning = _run(plan, workers, "tuning", missing_runs(plan, options, plan.tuning_runs()))
            todo = missing_runs(plan, options, plan.runs(best_rates(plan)))
            failed[plan.name] = tuning | _run(plan, workers, "runs", todo)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    return failed


def missing_runs(plan: Plan, options: StudyOptions, runs: Sequence[StudyRun]) -> list[StudyRun]:
    """The runs that are not complete, of the wanted arms and of those they have their rate from."""
    arms = [arm for arm in plan.study.arms if not options.arms or arm in options.arms]
    tuned = {plan.study.rate_from(arm) for arm in arms}
    return [
        run
        for run in runs
        if run.arm in (tuned if run.tuning else arms) and not is_complete(plan, run)
    ]


def _make_worlds(plan: Plan, workers: Workers) -> None:
    world = plan.study.world
    arm = next(iter(plan.study.arms))
    requests = {
        seed: WorldRequest(
            str(plan.world(seed)),
            seed,
            world.train_videos,
            world.tune_videos,
            world.eval_videos,
            world.annotations,
            world.scene,
            str(plan.study.base),
            plan.overrides(StudyRun(arm, None, seed, 0, tuning=False)),
        )
        for seed in plan.seeds()
    }
    with progress("worlds", len(requests)) as advance:

        def answered(seed: int, error: str | None) -> None:
            if error is not None:
                raise VideoOPDError(f"the world of seed {seed} cannot be made: {error}")
            advance(1)

        workers(requests, answered)


def _run(
    plan: Plan,
    workers: Workers,
    what: str,
    runs: Sequence[StudyRun],
) -> dict[StudyRun, str]:
    """Give out the runs; those that failed, with the reason."""
    failed: dict[StudyRun, str] = {}
    requests = {
        run: RunRequest(str(plan.study.base), plan.overrides(run), run.rounds) for run in runs
    }
    with progress(f"{plan.name}: {what}", len(runs)) as advance:

        def answered(run: StudyRun, error: str | None) -> None:
            advance(1)
            if error is not None:
                failed[run] = error
                print(f"{run.folder}: failed: {error}", file=sys.stderr, flush=True)
                return
            points = read_result(plan, run).points
            split = "tune" if run.tuning else "eval"
            print(
                f"{run.folder}: {split} mIoU {points[0].miou:.3f} -> {points[-1].miou:.3f}, "
                f"{points[-1].cpu_seconds:.0f} CPU seconds",
                flush=True,
            )

        workers(requests, answered)
    return failed


def best_rates(plan: Plan) -> dict[str, float]:
    """The learning rate of each trained arm: the best mean over the tune seeds of the mean IoU on
    the tune split, at the last round; of two alike, the smaller. A rate with which a run is missing
    is not chosen; arms without any have none, nor have those that take it from them."""
    tuning = plan.tuning_runs()
    if not tuning:
        return plan.only_rate()
    best = {
        arm: max(mious, key=lambda rate: (mious[rate], -rate))
        for arm, mious in tuning_means(_results(plan, tuning), plan.study.tune_seeds).items()
    }
    rated = {arm: plan.study.rate_from(arm) for arm in plan.study.trained()}
    return {arm: best[other] for arm, other in rated.items() if other in best}


def _results(plan: Plan, runs: Sequence[StudyRun]) -> list[Result]:
    return [read_result(plan, run) for run in runs if is_complete(plan, run)]


def _evidence(plan: Plan, failed: dict[StudyRun, str]) -> Evidence | None:
    """What is there of a plan's runs; None where nothing is."""
    from flows.study.evidence import Evidence
    from flows.study.wrongness import read_wrongness

    tuning = plan.tuning_runs()
    tuned = best_rates(plan)
    wanted = plan.runs(tuned)
    missing = {run: "not run yet" for run in (*tuning, *wanted) if not is_complete(plan, run)}
    missing |= failed
    untuned = [arm for arm in plan.study.trained() if arm not in tuned]
    results = _results(plan, wanted)
    if not results:
        return None
    return Evidence(
        plan=plan,
        results=results,
        tuning=_results(plan, tuning),
        tuned=tuned,
        missing={run.folder: reason for run, reason in missing.items()}
        | dict.fromkeys(untuned, "no tuning run of it is complete"),
        wrongness=read_wrongness(plan, [run for run in wanted if run not in missing]),
        sessions=_sessions(plan),
    )


def _report(conditions: Sequence[Evidence], out: Path) -> int:
    """Write a report of each condition, and of several one of all; 1 where a run is missing."""
    from flows.study.joint import write_joint
    from flows.study.report import write_report

    make_folder(out)
    written = [path for evidence in conditions for path in write_report(evidence, out)]
    if len(conditions) > 1:
        written += write_joint(conditions, out)
    print("written: " + ", ".join(str(path) for path in written))
    for evidence in conditions:
        for name, reason in evidence.missing.items():
            where = f"{evidence.plan.name}/{name}" if len(conditions) > 1 else name
            print(f"missing: {where}: {reason}", file=sys.stderr)
    return 1 if any(evidence.missing for evidence in conditions) else 0


def _note_session(plan: Plan) -> None:
    """Where and how runs were made, for the report."""
    from flows.bench.run import describe_machine
    from storage.tables.provenance import git_commit

    arguments = [shlex.quote(a) for a in sys.argv[1:]]
    session = {
        "command": " ".join(["videoopd", *arguments]),
        "machine": describe_machine(),
        "commit": git_commit(),
        "began": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    write_json(plan.root / SESSIONS_FILE, {"sessions": [*_sessions(plan), session]})


def _sessions(plan: Plan) -> list[dict[str, Any]]:
    file = plan.root / SESSIONS_FILE
    if not file.exists():
        return []
    sessions: list[dict[str, Any]] = json.loads(file.read_text())["sessions"]
    return sessions
