"""`videoopd bench recipes`: the demo with less in memory, against the demo: gain, disk, memory."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flows.bench.interleaved import Row, at_least, at_most
from flows.bench.tiny_config import world_config

if TYPE_CHECKING:
    from flows.launch import Rounds
    from storage.runs.run import Run

SEEDS = (0, 1)
"""Of world and run; the first is the demo's."""
ROUNDS = 3
NOISE = 0.03
"""By how much a round's eval mIoU is up or down by chance, on about 300 sentences."""
RECIPES: dict[str, list[str]] = {
    "float32": [],
    "bfloat16, 8-bit": [
        "student.dtype='bfloat16'", "update.weights='bfloat16'", "update.optimizer='adamw_8bit'",
    ],
}  # fmt: skip
"""What lies in memory -> how it differs from the demo's config."""


def recipe_rows() -> Iterator[Row]:
    from flows.launch import round_flow

    flow = round_flow()
    gains: dict[str, list[float]] = {name: [] for name in RECIPES}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            config = world_config(folder, seed)
            for name, overrides in RECIPES.items():
                run = folder / name.replace(", ", "-")
                gain, details = _rounds(flow, config, [f"run.path='{run}'", *overrides])
                gains[name].append(gain)
                yield Row(f"eval mIoU gained in {ROUNDS} rounds, {name}, seed {seed}", gain, "",
                          "measured", None, details)  # fmt: skip
                if seed == SEEDS[0]:
                    yield _disk(run, name)
    less = {name: statistics.mean(values) for name, values in gains.items()}
    for name in list(RECIPES)[1:]:
        yield at_least(
            f"eval mIoU gained above float32's, {name}, mean of {len(SEEDS)} seeds",
            less[name] - less["float32"],
            -NOISE,
            unit="",
        )


def _rounds(flow: Rounds, config: str, overrides: list[str]) -> tuple[float, dict[str, object]]:
    from storage.runs.run import Run

    summary = flow(config, rounds=ROUNDS, overrides=overrides)
    mious = [r.miou for r in summary.rounds if r.miou is not None]
    return mious[-1] - mious[0], {"mIoU": mious} | _updates(Run.open(summary.run_path))


def _updates(run: Run) -> dict[str, object]:
    from opd_core.types import Update

    updates = sorted(run.read("updates", Update), key=lambda u: u.policy_version)
    return {
        "moved_share": [u.moved_share for u in updates],
        "max_logprob_mismatch": [u.max_logprob_mismatch for u in updates],
        "mean_logprob_mismatch": [u.mean_logprob_mismatch for u in updates],
        "update_seconds": [u.seconds for u in updates],
        "update_peak_MiB": [
            use.peak_memory / 2**20
            for u in updates
            for use in u.stages or ()
            if use.stage == "update"
        ],
    }


def _disk(run: Path, name: str) -> Row:
    """The policies' folders, against the same with the optimiser's state in each, in float32, as
    they were before the trainer had a folder of its own."""
    policies, trainer = (_bytes(run / folder) for folder in ("policies", "trainer"))
    weights = ROUNDS * sum(p.stat().st_size for p in run.glob("policies/v1/*.safetensors"))
    in_float32 = weights if name == "float32" else 2 * weights
    before = policies - weights + 3 * in_float32  # two moments beside each weight
    return at_most(
        f"disk of {ROUNDS} rounds' policies, {name}, of what they were",
        policies / before,
        0.34,
        unit="",
        policies_MiB=policies / 2**20,
        trainer_MiB=trainer / 2**20,
        before_MiB=before / 2**20,
    )


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
