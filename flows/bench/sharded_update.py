"""An update by two ranks against one process: the same steps, seconds beside each other.

The ranks are processes of a group on this machine (gloo, a thread each), without Ray: what it
takes to start it is measured by whole rounds.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flows.bench.interleaved import Row, at_least, medians
from flows.bench.rounds import drawn_examples, sampled, trained_on
from flows.bench.tiny_config import world_config
from opd_core.config.load import Config, load_config
from opd_core.types import Policy
from opd_core.update.rows import HeldRows
from opd_core.update.student import update_student

EXAMPLES, ROLLOUTS, TRAIN_VIDEOS = 64, 8, 96
SETTINGS = [
    f"rollout.rollouts_per_example={ROLLOUTS}",
    "rollout.max_queries_per_video=1",
    "update.epochs=1",
    "update.examples_per_step=32",
    "update.max_policy_kl=1000.0",
    "machine.threads=1",
]


@dataclass(frozen=True, slots=True)
class Job:
    """An update, whose result is thrown away."""

    config: Config
    rows: HeldRows

    def run(self, together: bool) -> tuple[float, float]:
        """Seconds of its steps, before and after which the model is opened and saved; and of a CPU
        in the whole."""
        import torch

        from opd_core.model.ranks import ALONE, Ranks

        ranks = Ranks.joined(torch.device("cpu")) if together else ALONE
        policy, cpu = Policy(0, self.config.student.path, "student"), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            result = update_student(
                self.config, policy, self.rows, Path(folder) / "new", ranks=ranks
            )
        return sum(step.seconds for step in result.steps), time.process_time() - cpu


def sharded_update_rows(repetitions: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(world_config(Path(folder), 0, TRAIN_VIDEOS, eval_videos=4), SETTINGS)
        examples = drawn_examples(config, EXAMPLES)
        rollouts = sampled(config, Policy(0, config.student.path, "student"), examples)
        job = Job(config, HeldRows(trained_on(config, examples, rollouts)))
        context = multiprocessing.get_context("spawn")
        pools = [
            ProcessPoolExecutor(1, context, initializer=_join, initargs=(rank, folder))
            for rank in range(2)
        ]

        for begun in [pool.submit(os.getpid) for pool in pools]:  # they wait for each other
            begun.result()
        steps: dict[str, list[tuple[float, float]]] = {"one": [], "two": []}

        def one() -> None:
            steps["one"].append(pools[0].submit(job.run, False).result())

        def two() -> None:
            both = [pool.submit(job.run, True) for pool in pools]
            steps["two"].append(max(future.result() for future in both))

        whole = medians({"one": one, "two": two}, repetitions)
        for pool in pools:
            pool.shutdown()
    seconds, cpu = (
        {name: statistics.median(t[at] for t in turns[1:]) for name, turns in steps.items()}
        for at in range(2)
    )
    yield at_least(
        "update, its steps: one process / two ranks",
        seconds["one"] / seconds["two"],
        1.4,
        seconds=seconds,
        whole_seconds=whole,
        cpu_seconds_a_process=cpu,
        examples=EXAMPLES,
        rollouts_each=ROLLOUTS,
        load=os.getloadavg()[0],
    )


def _join(rank: int, folder: str) -> None:
    from torch import distributed

    from opd_core.model.tree_model import set_threads

    set_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
