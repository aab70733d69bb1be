"""Workers on Ray: how much faster two are than one process, and what the one that deals holds.

    videoopd bench cluster

All ways have their models open and their videos decoded (in the frame store, as in a round) before
the clock starts, and take turns. What two workers could bring at best is what the machine gives to
two processes that share nothing, each with all of the work of one: cores share caches and memory,
and one process uses a bit of a second core.

The memory is of two processes of their own: one deals a round of 100 examples, one a round of
10,000. Their rollouts are the annotated answers (`rollout.source = "truth"`): prompts, pixels and
rows are those of any other stage, and nobody waits for a model. Then the same of an update
(`update_memory.py`).
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from flows.bench.interleaved import Row, at_least, at_most, medians
from flows.bench.rounds import drawn_examples
from flows.bench.update_memory import update_memory_rows
from flows.stage.prepare import decoding_once
from opd_core.cluster.computing import Planned
from opd_core.cluster.connection import connected
from opd_core.cluster.work import Piece, StageWork, cut
from opd_core.cluster.workers import opened_workers
from opd_core.config.load import Config, load_config
from opd_core.model import peak_memory
from opd_core.model.tree_model import set_threads
from opd_core.rollout.answers import Sampling, sample_rollouts
from opd_core.rollout.by_example import by_example
from opd_core.scoring.trees import Scoring
from opd_core.types import GroundingExample, Policy, Rollout

WORKERS = 2
ALONE = "this process"
EXAMPLES = 512
"""Half a round of the tiny world, with its own numbers: batches of 64 prompts to answer, two
rollouts each, and of 32 to score."""
SMALL, LARGE = 100, 10_000
SPEED, MEMORY_MIB = 1.7, 100


def cluster_rows(config_file: str, repetitions: int) -> Iterator[Row]:
    """Speed, then memory."""
    yield from _speed(config_file, repetitions)
    yield _memory(config_file)
    yield from update_memory_rows(config_file, SMALL, LARGE, MEMORY_MIB)


def _speed(config_file: str, repetitions: int) -> Iterator[Row]:
    with ExitStack() as stack:
        apart = [stack.enter_context(_process_of_its_own(config_file)) for _ in range(WORKERS)]
        config, stages = stack.enter_context(_opened(config_file))
        stack.enter_context(connected(config))
        pools = [
            (stack.enter_context(opened_workers(stage.work, WORKERS)), stage.pieces)
            for stage in stages
        ]
        for pool, _ in pools:
            pool.wait_until_open()

        def there() -> None:
            for pool, pieces in pools:
                list(pool.compute(pieces))

        def sharing_nothing() -> None:
            for process in apart:
                process.send(True)
            for process in apart:
                process.recv()

        seconds = medians(
            {
                ALONE: lambda: _compute(stages),
                f"{WORKERS} workers": there,
                f"{WORKERS} processes": sharing_nothing,
            },
            repetitions,
        )
    yield at_least(
        f"rollout and score, tiny world: one process / {WORKERS} workers, warm",
        seconds[ALONE] / seconds[f"{WORKERS} workers"],
        SPEED,
        seconds=seconds,
        examples=EXAMPLES,
    )
    yield Row(
        f"what the machine gives: the same, one process / {WORKERS} that share nothing",
        WORKERS * seconds[ALONE] / seconds[f"{WORKERS} processes"],
        "x",
        "",
        None,
        {"seconds": seconds},
    )


class _Stage(NamedTuple):
    work: StageWork[Any]
    pieces: list[Piece]
    compute: Callable[[Planned], Iterator[object]]
    """Opened, in this process."""


@contextmanager
def _opened(config_file: str) -> Iterator[tuple[Config, list[_Stage]]]:
    """Rollout and score, warm in this process."""
    # Room for the workers of both stages.
    config = load_config(config_file, [f"cluster.workers={2 * WORKERS}"])
    set_threads(config.machine.threads)
    examples = drawn_examples(config, EXAMPLES)
    answered, unscored = (
        cut(examples, section.prompts_per_batch, lambda _: True)
        for section in (config.rollout, config.score)
    )
    sampling = Sampling(config, Policy(0, config.student.path, "student"))
    with decoding_once(config), sampling.opened() as sample:
        rollouts = by_example(r for b in sample(Planned(answered)) for r in b.records)
        longest = 1 + max(len(r.completion_token_ids) for rows in rollouts.values() for r in rows)
        scoring = Scoring(config, Policy(0, config.teacher.path, "teacher"), longest)
        scored = [_with_answers(piece, rollouts) for piece in unscored]
        with scoring.opened() as score:
            yield config, [_Stage(sampling, answered, sample), _Stage(scoring, scored, score)]


def _compute(stages: Sequence[_Stage]) -> None:
    for stage in stages:
        list(stage.compute(Planned(stage.pieces)))


@contextmanager
def _process_of_its_own(config_file: str) -> Iterator[Connection]:
    """Computes all of both stages for whatever it is sent but None, and answers when it has."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(config_file, there), daemon=True)
    process.start()
    there.close()
    here.recv()
    try:
        yield here
    finally:
        here.send(None)
        process.join()


def _serve(config_file: str, asks: Connection) -> None:
    with _opened(config_file) as (_, stages):
        asks.send(True)
        while asks.recv() is not None:
            _compute(stages)
            asks.send(True)


def _with_answers(piece: Piece, rollouts: dict[str, list[Rollout]]) -> Piece:
    return replace(piece, answers={e.example_id: rollouts[e.example_id] for e in piece.examples})


def _memory(config_file: str) -> Row:
    peaks = {count: _peak(config_file, count) for count in (SMALL, LARGE)}
    return at_most(
        f"memory of the process that deals: {LARGE:,} examples a round above {SMALL}",
        (peaks[LARGE] - peaks[SMALL]) / 2**20,
        MEMORY_MIB,
        " MiB",
        peak_mib={count: peak / 2**20 for count, peak in peaks.items()},
    )


def _peak(config_file: str, count: int) -> int:
    """Bytes that a process of its own has held while it dealt so many examples to workers."""
    command = [sys.executable, "-m", "flows.bench.cluster", config_file, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def dealt(config_file: str, count: int) -> int:
    """Deal a round of `count` examples, drop its rows as they come; the peak in bytes of what this
    process holds."""
    overrides = [
        "rollout.source='truth'",
        "rollout.rollouts_per_example=1",
        f"cluster.workers={WORKERS}",
    ]
    config = load_config(config_file, overrides)
    known = drawn_examples(config, SMALL)
    examples = _as_many(known, count)
    policy = Policy(0, config.student.path, "student")
    rows = sum(len(b.records) for b in sample_rollouts(config, policy, examples, set()))
    assert rows == count, rows
    return peak_memory.of_this_process()[0]


def _as_many(known: Sequence[GroundingExample], count: int) -> list[GroundingExample]:
    """The examples again and again, under ids of their own."""
    return [
        replace(known[n % len(known)], example_id=f"{known[n % len(known)].example_id}-{n}")
        for n in range(count)
    ]


if __name__ == "__main__":
    print(dealt(sys.argv[1], int(sys.argv[2])))
