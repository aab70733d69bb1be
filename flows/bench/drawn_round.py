"""Stages of a round, end to end, on a checkpoint of drawn weights and videos of noise: from a video
file to rollouts, scores and optimiser steps, with what each takes in memory.

The student is its own teacher, so every score is its own log-probability.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flows.bench.drawn import Shape, draw_weights
from flows.bench.interleaved import Row
from flows.bench.stage_speed import device_name
from flows.shipped import shipped_files
from opd_core.config.load import Config, load_config
from opd_core.types import GroundingExample, Policy, Rollout, TeacherScore, UpdateStep

if TYPE_CHECKING:
    from opd_core.update.rows import Trained

SENTENCES, ROLLOUTS, ANSWER, STEPS = 4, 8, 20, 3
LORA = ("update.lora.rank=32", "update.learning_rate=1e-5")
EIGHT_BIT = (
    "update.weights='bfloat16'", "update.optimizer='adamw_8bit'", "update.learning_rate=1e-6",
)  # fmt: skip
MISMATCH = 1.0
"""Nats that sampler and trainer may differ by: drawn weights of 8B amplify the rounding of bfloat16
beyond what a trained model may (0.03 on average)."""
FAST_FOLDER = Path("/dev/shm")
"""A checkpoint of 8B is 17.5 GB; disks are not what is measured."""


@dataclass(frozen=True, slots=True)
class Videos:
    count: int
    seconds: int
    width: int
    height: int


def drawn_round_rows(shape: Shape, device: torch.device, videos: Videos) -> Iterator[Row]:
    """Rows of sample, score, an update of a LoRA adapter, and one of all weights in 8 bits."""
    where = f"{shape.name}, {videos.count} videos of {videos.seconds} s"
    fast = FAST_FOLDER if FAST_FOLDER.is_dir() and device.type == "cuda" else None
    with tempfile.TemporaryDirectory(dir=fast) as name:
        folder = Path(name)
        write_checkpoint(shape, device, folder / "model")
        write_videos(folder, videos)
        config = _config(folder)
        policy = Policy(0, folder / "model", "drawn")
        examples = _examples(config)
        with _measured(device) as taken:
            rollouts = _sample(config, policy, examples)
        count = sum(map(len, rollouts.values()))
        yield _row(f"{where}: {count} rollouts sampled", taken, device, rollouts=count)
        with _measured(device) as taken:
            scores = _score(config, policy, examples, rollouts)
        yield _row(f"{where}: {len(scores)} rollouts scored", taken, device, rollouts=len(scores))
        work = _trained(examples, rollouts, scores)
        for what, overrides in (("LoRA", LORA), ("all weights, 8-bit AdamW", EIGHT_BIT)):
            with _measured(device) as taken:
                steps = _update(_config(folder, overrides), policy, work)
            yield _row(
                f"{where}: {len(steps)} steps on {what}", taken, device,
                seconds_of_steps=[s.seconds for s in steps],
                grad_norms=[s.grad_norm for s in steps],
            )  # fmt: skip


def write_checkpoint(shape: Shape, device: torch.device, folder: Path) -> None:
    """A checkpoint folder of drawn weights, with the tiny student's processor."""
    from opd_core.prompts.encoder import load_processor

    processor = load_processor(shipped_files() / "configs" / "tiny" / "student")
    ids = processor.tokenizer.convert_tokens_to_ids
    model = draw_weights(shape, device, torch.bfloat16, ids)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()


def write_videos(folder: Path, videos: Videos) -> None:
    """Moving noise, and annotations of it in `train.jsonl`."""
    import numpy as np

    from opd_core.tinyworld.world import FPS, encode_mp4

    random = np.random.default_rng(0)
    rows = []
    for number in range(videos.count):
        picture = random.integers(0, 255, (videos.height, videos.width, 3), dtype=np.uint8)
        shifts = range(0, 3 * FPS * videos.seconds, 3)
        frames = np.stack([np.roll(picture, shift, axis=1) for shift in shifts])
        encode_mp4(frames, folder / f"{number}.mp4")
        events = [
            {"query": f"a square moves {s}", "span": [[0.5 * s, 0.5 * s + 1]]}
            for s in range(SENTENCES)
        ]
        rows.append(
            {"source": "drawn", "video_path": f"{number}.mp4", "duration": float(videos.seconds),
             "events": events}
        )  # fmt: skip
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _config(folder: Path, overrides: Sequence[str] = ()) -> Config:
    path = folder / "round.toml"
    path.write_text(f"""
[run]
path = "{folder / "run"}"
[data]
train = "{folder / "train.jsonl"}"
eval = "{folder / "train.jsonl"}"
videos = "{folder}"
[student]
path = "{folder / "model"}"
dtype = "bfloat16"
[teacher]
path = "{folder / "model"}"
dtype = "bfloat16"
[rollout]
rollouts_per_example = {ROLLOUTS}
max_new_tokens = {ANSWER}
max_engine_mismatch = {MISMATCH}
[update]
examples_per_step = {SENTENCES}
epochs = {STEPS}
max_steps = {STEPS}
gradient_checkpointing = true
max_logprob_mismatch = {MISMATCH}
""")
    return load_config(path, overrides)


def _examples(config: Config) -> list[GroundingExample]:
    from opd_core.annotations.timelens import read_timelens

    read = read_timelens(config.data.train, "train")
    return [item for item in read if isinstance(item, GroundingExample)]


def _sample(
    config: Config, policy: Policy, examples: Sequence[GroundingExample]
) -> dict[str, list[Rollout]]:
    from opd_core.rollout.answers import sample_rollouts

    rollouts: dict[str, list[Rollout]] = {}
    for batch in sample_rollouts(config, policy, examples, set()):
        for rollout in batch.records:
            rollouts.setdefault(rollout.example_id, []).append(rollout)
    return rollouts


def _score(
    config: Config,
    policy: Policy,
    examples: Sequence[GroundingExample],
    rollouts: Mapping[str, list[Rollout]],
) -> dict[str, TeacherScore]:
    from opd_core.scoring.trees import score_rollouts

    work = [(e, rollouts[e.example_id]) for e in examples]
    return {s.rollout_id: s for b in score_rollouts(config, policy, work) for s in b.records}


def _trained(
    examples: Sequence[GroundingExample],
    rollouts: Mapping[str, list[Rollout]],
    scores: Mapping[str, TeacherScore],
) -> list[Trained]:
    from opd_core.update.rows import Trained

    return [
        Trained(e, tuple(rollouts[e.example_id]),
                tuple(scores[r.rollout_id] for r in rollouts[e.example_id]))
        for e in examples
    ]  # fmt: skip


def _update(config: Config, policy: Policy, work: Sequence[Trained]) -> list[UpdateStep]:
    from opd_core.update.rows import HeldRows
    from opd_core.update.student import update_student

    with tempfile.TemporaryDirectory(dir=policy.path.parent) as staging:
        new = Path(staging) / "policy"
        return list(update_student(config, policy, HeldRows(work), new).steps)


class _measured:
    """Seconds of a block, and the most that the device's memory held in it."""

    seconds = 0.0
    peak_gib: float | None = None

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def __enter__(self) -> _measured:
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            torch.cuda.synchronize()
            self.peak_gib = torch.cuda.max_memory_allocated() / 2**30
        self.seconds = time.perf_counter() - self._began


def _row(name: str, taken: _measured, device: torch.device, **details: Any) -> Row:
    told = {"device": device_name(device), "peak GiB": taken.peak_gib, **details}
    return Row(f"{name}, seconds", taken.seconds, "s", "measured", None, told)
