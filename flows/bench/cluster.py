"""Workers on Ray: how much faster two are than one process, and what the one that deals holds.

    videoopd bench cluster

Both ways have their models open and their videos decoded (in the frame store, as in a round) before
the clock starts, and take turns. The memory is of two processes of their own: one deals a round of
100 examples, one a round of 10,000. Their rollouts are the annotated answers (`rollout.source =
"truth"`): prompts, pixels and rows are those of any other stage, and nobody waits for a model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from flows.bench.interleaved import Row, at_least, at_most, medians
from flows.bench.rounds import drawn_examples
from flows.stage.prepare import decoding_once
from opd_core.cluster.computing import Planned
from opd_core.cluster.connection import connected
from opd_core.cluster.work import Piece, StageWork, cut
from opd_core.cluster.workers import opened_workers
from opd_core.config.load import load_config
from opd_core.model import peak_memory
from opd_core.rollout.answers import Sampling, sample_rollouts
from opd_core.rollout.by_example import by_example
from opd_core.scoring.trees import Scoring
from opd_core.types import GroundingExample, Policy, Rollout

WORKERS = 2
EXAMPLES, ROLLOUTS, PROMPTS = 96, 8, 12
SMALL, LARGE = 100, 10_000
SPEED, MEMORY_MIB = 1.7, 100


def cluster_rows(config_file: str, repetitions: int) -> Iterator[Row]:
    """Speed, then memory."""
    yield _speed(config_file, repetitions)
    yield _memory(config_file)


def _speed(config_file: str, repetitions: int) -> Row:
    overrides = [
        f"rollout.rollouts_per_example={ROLLOUTS}",
        f"rollout.prompts_per_batch={PROMPTS}",
        f"score.prompts_per_batch={PROMPTS}",
        "machine.threads=1",
        # Room for the workers of both stages.
        f"cluster.workers={2 * WORKERS}",
    ]
    config = load_config(config_file, overrides)
    examples = drawn_examples(config, EXAMPLES)
    plan = cut(examples, PROMPTS, lambda _: True)
    sampling = Sampling(config, Policy(0, config.student.path, "student"))
    with decoding_once(config), connected(config), ExitStack() as stack:
        sample = stack.enter_context(sampling.opened())
        rollouts = by_example(r for b in sample(Planned(plan)) for r in b.records)
        longest = 1 + max(len(r.completion_token_ids) for rows in rollouts.values() for r in rows)
        scoring = Scoring(config, Policy(0, config.teacher.path, "teacher"), longest)
        score = stack.enter_context(scoring.opened())
        scored = [_with_answers(piece, rollouts) for piece in plan]
        stages: list[tuple[StageWork[Any], list[Piece]]] = [(sampling, plan), (scoring, scored)]
        workers = [
            (stack.enter_context(opened_workers(work, WORKERS)), pieces) for work, pieces in stages
        ]
        for pool, _ in workers:
            pool.wait_until_open()

        def here() -> None:
            list(sample(Planned(plan)))
            list(score(Planned(scored)))

        def there() -> None:
            for pool, pieces in workers:
                list(pool.compute(pieces))

        both = {"this process": here, f"{WORKERS} workers": there}
        seconds = medians(both, repetitions)
    ratio = seconds["this process"] / seconds[f"{WORKERS} workers"]
    return at_least(
        f"rollout and score, tiny world: one process / {WORKERS} workers, warm",
        ratio,
        SPEED,
        seconds=seconds,
        examples=EXAMPLES,
        rollouts=EXAMPLES * ROLLOUTS,
    )


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
