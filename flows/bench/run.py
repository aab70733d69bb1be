"""`make bench`: the numbers the project is measured by, printed and written as JSON.

    videoopd bench                     all of it (about an hour on 2 cores)
    videoopd bench --list              what there is
    videoopd bench trees overhead      only these; the rows of the others stay in the file
    videoopd bench accelerator --minutes 8     ends itself by then

Ratios of medians, the alternatives taking turns in one process, because machines are shared and
noisy. What a number was measured on is printed above it.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.bench.tiny_config import DEMO, world_config
from opd_core.types import VideoOPDError
from storage.files import write_json

if TYPE_CHECKING:
    from flows.bench.interleaved import Row
    from flows.launch import Rounds
    from flows.stage.prepare import Work

OUT = Path("runs/bench.json")
REPETITIONS = 5
ACCELERATOR = "accelerator"
SEEDS = (0, 1, 2, 3)
"""Of world and run; the first is the demo's."""


def main(arguments: Sequence[str], minutes: float | None = None) -> None:
    """Run the benches named in `arguments`, or all; `minutes`: of `accelerator`, None its own."""
    unknown = [name for name in arguments if name not in BENCHES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], BENCHES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise VideoOPDError(
            f"there is no bench {unknown[0]!r}; {hint}they are: {', '.join(BENCHES)}"
        )
    if minutes is not None and list(arguments) != [ACCELERATOR]:
        raise VideoOPDError(f"--minutes is of `videoopd bench {ACCELERATOR}` alone")
    from opd_core.model.tree_model import set_threads

    set_threads(1)
    machine = describe_machine()
    print(machine, flush=True)
    for name in arguments or list(BENCHES):
        print(f"bench {name} ...", flush=True)
        rows: list[Row] = []
        for row in _accelerator(minutes) if minutes is not None else BENCHES[name].rows():
            rows.append(row)
            met = "" if row.met is None else ("  met" if row.met else "  NOT MET")
            print(f"  {row.name}: {row.value:.3g} {row.unit} ({row.target}{met})", flush=True)
            print(f"      {json.dumps(row.details)}", flush=True)
        keep(OUT, machine, rows)
    print(f"written to {OUT}")


def print_list() -> None:
    """The names, each with what it measures."""
    for name, bench in BENCHES.items():
        print(f"{name:<18} {bench.about}")


def keep(path: Path, machine: str, rows: Sequence[Row]) -> None:
    """Write the rows, each with its machine and date; those of other names stay as they were.

    A name with a seed or a count in it is a name of its own. Raises `VideoOPDError` where the file
    is something else.
    """
    known: dict[str, dict[str, Any]] = {}
    if path.exists():
        try:
            content = json.loads(path.read_text())
            former = {"machine": content["machine"]} if "machine" in content else {}
            known = {row["name"]: former | row for row in content["rows"]}
        except (ValueError, KeyError, TypeError):
            raise VideoOPDError(
                f"{path} is not what a bench wrote; move it away and run the bench again"
            ) from None
    for row in rows:
        known[row.name] = {"machine": machine, **asdict(row)}
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"rows": list(known.values())})


def describe_machine() -> str:
    """One line: date, processor, cores, threads used, versions."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "pylance"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {names[0] if names else platform.processor()}, "
        f"{os.cpu_count()} cores, 1 thread, {packages}, Python {platform.python_version()}"
    )


def _trees() -> Iterator[Row]:
    from flows.bench.trees import tree_rows

    return tree_rows(REPETITIONS)


def _sharded_update() -> Iterator[Row]:
    from flows.bench.sharded_update import sharded_update_rows

    return sharded_update_rows(REPETITIONS)


def _sampling() -> Iterator[Row]:
    from flows.bench.trees import rollout_count_rows, sampling_row

    yield sampling_row(REPETITIONS)
    yield from rollout_count_rows(REPETITIONS)


def _claims_cost() -> Iterator[Row]:
    from flows.bench.claims_cost import claims_cost_rows

    return claims_cost_rows()


def _memory() -> Iterator[Row]:
    from flows.bench.trees import memory_row

    yield memory_row()


def _accelerator(minutes: float | None = None) -> Iterator[Row]:
    from flows.bench.accelerator import MINUTES, accelerator_rows

    return accelerator_rows(MINUTES if minutes is None else minutes)


def _store() -> Iterator[Row]:
    from flows.bench.store import store_rows

    return store_rows()


def _view() -> Iterator[Row]:
    from flows.bench.view import view_rows

    return view_rows()


def _decoding() -> Iterator[Row]:
    from flows.bench.decoding import decoding_rows

    return decoding_rows()


def _kills() -> Iterator[Row]:
    from flows.bench.kills import kills_rows

    return kills_rows()


def _idle() -> Iterator[Row]:
    from flows.bench.idle import idle_rows

    return idle_rows()


def _throughput() -> Iterator[Row]:
    """Trajectories a second of whole rounds on the tiny world, in the yardstick's terms."""
    from flows.bench.interleaved import at_least
    from flows.bench.rounds import round_seconds

    with tempfile.TemporaryDirectory() as folder:
        config = world_config(Path(folder), seed=0)
        for rollouts, bound in ((1, 1.5 * BEST_PUBLISHED), (8, 5 * BEST_PUBLISHED)):
            seconds = [round_seconds(config, 128, rollouts) for _ in range(3)]
            total = statistics.median(sum(s.values()) for s in seconds)
            yield at_least(
                f"tiny world, {rollouts} rollouts a prompt: trajectories a second",
                128 * rollouts / total,
                bound,
                unit="/s",
                milliseconds_each={
                    stage: 1000 * statistics.median(s[stage] for s in seconds) / (128 * rollouts)
                    for stage in seconds[0]
                },
            )


BEST_PUBLISHED = 9.3
"""Trajectories a second of the fastest published trainer on such models and 2 such cores, TRL's
distillation trainer with one rollout a prompt; its owner's measurement, not redone here."""


def _vllm() -> Iterator[Row]:
    from flows.bench.engine_idle import engine_idle_rows
    from flows.bench.vllm_scoring import vllm_scoring_row

    with tempfile.TemporaryDirectory() as folder:
        config = world_config(Path(folder), seed=0)
        yield vllm_scoring_row(config, REPETITIONS)
        yield from engine_idle_rows(config, REPETITIONS)


def _cluster() -> Iterator[Row]:
    from flows.bench.cluster import cluster_rows

    with tempfile.TemporaryDirectory() as folder:
        yield from cluster_rows(world_config(Path(folder), seed=0), REPETITIONS)


def _planned() -> Iterator[Row]:
    from flows.bench.planned import planned_rows

    return planned_rows()


def _quantised_teacher() -> Iterator[Row]:
    from flows.bench.quantised_teacher import quantised_teacher_rows

    return quantised_teacher_rows()


def _overhead() -> Iterator[Row]:
    """What Prefect, Lance and decoding add to the compute of the same rounds."""
    from flows.bench.interleaved import at_most
    from flows.launch import round_flow
    from flows.stage.prepare import opened

    with tempfile.TemporaryDirectory() as folder:
        config = world_config(Path(folder), seed=0)
        flow = round_flow()
        # Without the frame store, which would decode a round's videos once for ever; rounds of a
        # third of the config's work, which makes the share of what is measured larger, not smaller.
        decoding = [
            "frames.enabled=false", "rollout.examples_per_round=384", "update.epochs=3",
        ]  # fmt: skip
        flow(config, rounds=1, overrides=decoding)  # imports, and the base policy's evaluation
        whole: list[float] = []
        bare: list[float] = []
        for _ in range(3):
            _forget_decoded()
            began = time.perf_counter()
            flow(config, rounds=1, overrides=decoding)
            whole.append(time.perf_counter() - began)
            with opened(config, decoding) as work:
                bare.append(_bare_seconds(work, work.policy().version - 1))
        ratio = statistics.median(whole) / statistics.median(bare)
        yield at_most(
            "orchestration, storage and decoding above bare compute, whole rounds",
            100 * (ratio - 1),
            15,
            unit=" %",
            whole_seconds=whole,
            bare_seconds=bare,
        )


def _bare_seconds(work: Work, round: int) -> float:
    """The computation of a finished round again, without Prefect, tables and decoding."""
    from flows.bench.rounds import FinishedRound, recompute
    from opd_core.types import Draw, Evaluation, GroundingExample, Rollout, TeacherScore

    run = work.run
    examples = {e.example_id: e for e in run.read("examples", GroundingExample)}
    draws = sorted(run.read("draws", Draw), key=lambda d: d.position)
    seen = {d.example_id for d in draws if d.policy_version < round}
    drawn = [examples[d.example_id] for d in draws if d.policy_version == round]
    rollouts = [r for r in run.read("rollouts", Rollout) if r.policy_version == round]
    scores = [s for s in run.read("teacher_scores", TeacherScore) if s.policy_version == round]
    answered = [e for e in run.read("evaluations", Evaluation) if e.policy_version == round + 1]
    return recompute(
        work.config,
        FinishedRound(
            policy=run.policy(round),
            next_policy=run.policy(round + 1),
            teacher_hash=work.teachers.joined_hash,
            predicted=[e for e in drawn if e.example_id not in seen],
            drawn=drawn,
            rollouts=rollouts,
            scores=scores,
            evaluated=[examples[a.example_id] for a in answered],
        ),
    )


def _forget_decoded() -> None:
    """The next round decodes its videos again, as a process of its own would."""
    from opd_core.prompts.batches import forget_decoded

    forget_decoded()


def _gain() -> Iterator[Row]:
    """What three rounds of the demo bring, on its seed and on others."""
    from flows.bench.interleaved import Row, at_least
    from flows.launch import round_flow

    flow = round_flow()
    gains: dict[int, dict[str, float]] = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            gains[seed], details = _demo_gain(flow, Path(folder), seed)
        for metric, gain in gains[seed].items():
            yield Row(f"eval {metric} gained in three rounds, seed {seed}", gain, "", "measured",
                      None, details)  # fmt: skip
    for metric, wanted in (("mIoU", 0.10), ("R1@0.7", 0.15)):
        yield at_least(f"eval {metric} gained, the demo's seed", gains[SEEDS[0]][metric], wanted,
                       unit="")  # fmt: skip
        others = statistics.mean(gains[seed][metric] for seed in SEEDS[1:])
        yield at_least(f"eval {metric} gained, mean of the three other seeds", others, wanted,
                       unit="")  # fmt: skip


def _demo_gain(flow: Rounds, folder: Path, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """What three rounds gained, by metric, and its details."""
    config = world_config(folder, seed, like=DEMO)
    began = time.perf_counter()
    summary = flow(config, rounds=3, overrides=[])
    curves = {
        "mIoU": [r.miou for r in summary.rounds if r.miou is not None],
        "R1@0.7": [r.r1_70 for r in summary.rounds if r.r1_70 is not None],
    }
    details = {**curves, "seconds": time.perf_counter() - began}
    return {metric: curve[-1] - curve[0] for metric, curve in curves.items()}, details


def _recipes() -> Iterator[Row]:
    from flows.bench.recipes import recipe_rows

    return recipe_rows()


@dataclass(frozen=True, slots=True)
class Bench:
    about: str
    rows: Callable[[], Iterator[Row]]


BENCHES = {
    "trees": Bench("prefix trees against separate sequences: score and update", _trees),
    "sharded-update": Bench("an update by two ranks against one process", _sharded_update),
    "sampling": Bench("HF sampling from one prefill; whole rounds by rollouts", _sampling),
    "claims-cost": Bench(
        "a step of OPD-1 against GRPO-8, prompts repeated and shared", _claims_cost
    ),
    "memory": Bench("peak memory of scoring: completion rows, full logits", _memory),
    ACCELERATOR: Bench("Qwen3-VL-2B and -8B shapes on CUDA (10 minutes)", _accelerator),
    "store": Bench("a million trajectories in Lance and in Parquet", _store),
    "view": Bench("pages of `videoopd view` at a million trajectories, and what it costs", _view),
    "decoding": Bench("frames of a video file that one core decodes a second", _decoding),
    "throughput": Bench("trajectories a second of whole rounds, tiny world", _throughput),
    "vllm": Bench("teacher scoring: vLLM against HF trees; idle engines, tiny world", _vllm),
    "cluster": Bench("two workers against one process; memory of who deals, tiny world", _cluster),
    "quantised-teacher": Bench(
        "KL of a teacher in FP8 and int4 to the whole one, with its tail", _quantised_teacher
    ),
    "plan": Bench("memory by `videoopd plan` against what stages take, on a CPU", _planned),
    "overhead": Bench("Prefect, Lance and decoding above bare compute", _overhead),
    "idle": Bench("a stage with nothing to do; a second process refused", _idle),
    "kills": Bench("kill -9 at random moments of three rounds (12 minutes)", _kills),
    "gain": Bench("eval mIoU that three rounds of the demo bring, four seeds", _gain),
    "recipes": Bench("the demo with less in memory: gain, disk of policies, two seeds", _recipes),
}
