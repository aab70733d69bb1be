"""The store at a million trajectories: what filling it, asking it and keeping it costs.

    python -m flows.bench.tables fill FOLDER 1000000        one JSON line each
    python -m flows.bench.tables ask FOLDER

Each runs in a process of its own, on two cores, so that its memory is its own. Synthetic rows,
twenty completion tokens each, through the very calls that the stages make.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.bench.interleaved import medians
from opd_core.types import (
    Rollout,
    Span,
    TeacherPrediction,
    TeacherScore,
    make_rollout_id,
)

if TYPE_CHECKING:
    import polars as pl

TOKENS, PROMPT, FRAMES = 20, 32, 8
ROLLOUTS_PER_EXAMPLE, PREDICTIONS, ROUNDS = 8, 4, 20
BATCH = 10_000
BATCHES_PER_ROUND = 5
TEACHER = "t" * 64
CORES = 2


def fill(folder: Path, rows: int) -> dict[str, Any]:
    """Appends `rows` rollouts with their scores, and the teacher's answers; seconds and bytes."""
    from storage.tables.lance_tables import Tables
    from storage.tables.provenance import Provenance
    from storage.tables.schemas import TABLES
    from storage.tables.upkeep import upkeep

    tables = Tables.create(folder)
    seconds: dict[str, float] = {}
    sizes_now: dict[str, int] = {}
    makers: dict[str, Callable[[int], Iterator[list[Any]]]] = {
        "rollouts": _rollouts,
        "teacher_scores": _scores,
        "teacher_predictions": _predictions,
    }
    for name, make in makers.items():
        stamp = Provenance("bench", TABLES[name].writer or "", 0, "bench", None, "bench")
        spent = 0.0
        for number, records in enumerate(make(rows), start=1):
            began = time.perf_counter()
            added = tables.append(name, records, stamp)
            assert added == len(records)
            if number % BATCHES_PER_ROUND == 0:
                tables.compact(name)
                upkeep(tables, name)
                tables.tag(name, f"round-{number // BATCHES_PER_ROUND}")
            spent += time.perf_counter() - began
        seconds[name] = spent
        files = [
            f for fragment in tables._dataset(name).get_fragments() for f in fragment.data_files()
        ]
        sizes_now[name] = sum(file.file_size_bytes or 0 for file in files)
    sizes = {name: _size(folder / f"{name}.lance") for name in makers}
    return {
        "rows": rows, "seconds": seconds, "bytes": sizes_now, "bytes with what tags keep": sizes,
        "batch": BATCH, **peak_memory(),
    }  # fmt: skip


def ask(folder: Path) -> dict[str, Any]:
    """Seconds of opening, lookups, a filter with few columns, and a random take; Parquet beside."""
    import polars as pl

    from storage.tables.lance_tables import Tables

    began = time.perf_counter()
    tables = Tables.open(folder)
    rows = tables.scan("rollouts").select(pl.len()).collect().item()
    opening = time.perf_counter() - began
    parquet = folder.parent / "rollouts.parquet"
    if not parquet.exists():
        tables.scan("rollouts").sink_parquet(parquet, compression="zstd")
    generator = random.Random(0)
    ids = [_rollout_id(generator.randrange(rows)) for _ in range(110)]
    frame = tables.scan("rollouts")  # held, as by whoever looks up more than one
    answer: dict[str, Any] = {"rows": rows, "opening": opening}
    for name, make in (
        ("lookups", lambda: frame),
        ("on a new scan", lambda: tables.scan("rollouts")),
    ):
        answer[name] = [_seconds(lambda i=i, m=make: _lookup(m(), i)) for i in ids][10:]  # type: ignore[misc]
    queries = {
        "1 % by IoU, tokens and log-probs": (
            pl.col("student_iou") > 0.99,
            ("rollout_id", "text", "completion_token_ids", "sampling_logprobs"),
        ),
        "a round, ids and IoU": (pl.col("policy_version") == 7, ("example_id", "student_iou")),
        "a round, log-probs": (
            pl.col("policy_version") == 7, ("rollout_id", "sampling_logprobs"),
        ),
    }  # fmt: skip
    for name, (filter, columns) in queries.items():
        ways: dict[str, Callable[[], Any]] = {
            "lance": lambda f=filter, c=columns: (  # type: ignore[misc]
                tables.scan("rollouts").filter(f).select(c).collect()
            ),
            "parquet": lambda f=filter, c=columns: (  # type: ignore[misc]
                pl.scan_parquet(parquet).filter(f).select(c).collect()
            ),
        }
        assert ways["lance"]().height == ways["parquet"]().height > 0
        answer[name] = medians(ways, 7)
    dataset = tables._dataset("rollouts")

    def indices() -> list[int]:
        return sorted(generator.sample(range(rows), 100))

    takes: dict[str, Callable[[], Any]] = {
        "lance": lambda: dataset.take(indices()),
        "parquet, gather": lambda: (
            pl.scan_parquet(parquet).select(pl.all().gather(indices())).collect()
        ),
        "parquet, row index": lambda: (
            pl.scan_parquet(parquet, row_index_name="i").filter(pl.col("i").is_in(indices()))
            .collect()
        ),
    }  # fmt: skip
    answer["take"] = medians(takes, 9)
    answer["parquet bytes"] = parquet.stat().st_size
    return answer | peak_memory()


def _lookup(frame: pl.LazyFrame, rollout_id: str) -> None:
    import polars as pl

    assert frame.filter(pl.col("rollout_id") == rollout_id).collect().height == 1


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _example_id(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def _rollout_id(number: int) -> str:
    example, index = divmod(number, ROLLOUTS_PER_EXAMPLE)
    return make_rollout_id(example % ROUNDS, _example_id(example), index)


def _rollouts(rows: int) -> Iterator[list[Rollout]]:
    generator = random.Random(1)
    for start in range(0, rows, BATCH):
        batch = []
        for number in range(start, min(rows, start + BATCH)):
            example, index = divmod(number, ROLLOUTS_PER_EXAMPLE)
            begin = round(generator.uniform(0, 60), 1)
            length = round(generator.uniform(1, 20), 1)
            batch.append(
                Rollout(
                    rollout_id=_rollout_id(number),
                    policy_version=example % ROUNDS,
                    answered_by="student",
                    policy_hash=f"{example % ROUNDS:064x}",
                    example_id=_example_id(example),
                    sample_index=index,
                    seed=generator.getrandbits(63),
                    prompt_token_ids=generator.choices(range(150_000), k=PROMPT),
                    completion_token_ids=generator.choices(range(150_000), k=TOKENS),
                    sampling_logprobs=[-generator.expovariate(2.0) for _ in range(TOKENS)],
                    finish_reason="stop",
                    text=f"The event happens in {begin} - {begin + length:.1f} seconds.",
                    predicted_span=Span(begin, begin + length),
                    student_iou=generator.random(),
                    frame_indices=range(0, 15 * FRAMES, 15),
                    frame_timestamps=[i / 2 for i in range(FRAMES)],
                    grid_thw=(FRAMES // 2, 8, 8),
                    pixel_hash=f"{example // 5:016x}",
                    processor_hash="p" * 16,
                    engine="hf",
                    engine_version="transformers, torch",
                    engine_mismatch=None,
                    seconds=0.1,
                )
            )
        yield batch


def _scores(rows: int) -> Iterator[list[TeacherScore]]:
    generator = random.Random(2)
    for start in range(0, rows, BATCH):
        yield [
            TeacherScore(
                rollout_id=_rollout_id(number),
                policy_version=number // ROLLOUTS_PER_EXAMPLE % ROUNDS,
                teacher_id="teacher",
                teacher_hash=TEACHER,
                teacher_logprobs=[-generator.expovariate(2.0) for _ in range(TOKENS)],
                topk_token_ids=None,
                topk_logprobs=None,
                tail_logprobs=None,
                teacher_entropies=None,
                hidden_states=None,
                scorer="hf",
                content_hash=f"{number:032x}",
                reused_from=None,
                seconds=0.1,
            )
            for number in range(start, min(rows, start + BATCH))
        ]


def _predictions(rows: int) -> Iterator[list[TeacherPrediction]]:
    generator = random.Random(3)
    examples = -(-rows // ROLLOUTS_PER_EXAMPLE)
    each = BATCH // PREDICTIONS
    for start in range(0, examples, each):
        yield [
            TeacherPrediction(
                example_id=_example_id(example),
                prediction_index=index,
                teacher_id="teacher",
                teacher_hash=TEACHER,
                question_hash="0" * 16,
                text="The event happens in 1.0 - 2.0 seconds.",
                predicted_span=Span(1.0, 2.0),
                iou=generator.random(),
                seed=generator.getrandbits(63),
                pixel_hash="0" * 16,
                reused_from=None,
            )
            for example in range(start, min(examples, start + each))
            for index in range(PREDICTIONS)
        ]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def peak_memory() -> dict[str, float]:
    """Peak resident memory of this process in GiB, under the name that the rows have it."""
    return {"peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def limit_cores() -> None:
    """Call it before polars and Lance are imported: they read the number of threads once."""
    os.environ |= {"POLARS_MAX_THREADS": str(CORES), "LANCE_CPU_THREADS": str(CORES)}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def main(arguments: list[str]) -> None:
    limit_cores()
    what, folder, *rest = arguments
    answer = fill(Path(folder), int(rest[0])) if what == "fill" else ask(Path(folder))
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
