"""What an update holds in memory: the process that asks for it, and its ranks, however many rows.

    videoopd bench cluster

A round of 100 and one of 10,000 rollouts with the teacher's top-k lie in the tables of runs of
their own; their videos are the same few under other names. A process of its own makes as many steps
of either, alone or by two ranks, and says what it has held at most, and what the largest of it and
its ranks has. As many, because what is freed in a step stays with the allocator: after a hundred
steps that is a tenth of the process more than after three, whatever is trained on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flows import stages
from flows.bench.interleaved import Row, at_most
from flows.bench.rounds import drawn_examples
from flows.stage import rows as round_rows
from flows.stage.prepare import Work, opened
from opd_core.config.load import Config, load_config
from opd_core.model import peak_memory
from opd_core.rollout.answers import sample_rollouts
from opd_core.rollout.by_example import by_example
from opd_core.scoring.trees import score_rollouts
from opd_core.types import GroundingExample, Rollout, TeacherScore, make_rollout_id

Key = tuple[str, str]
"""Name of a video and a sentence about it."""
KNOWN = 100
"""Examples that are answered and scored; the others are they, of a video under another name."""
ROWS_AT_ONCE = 1000
RANKS = 2
STEPS = 100
OVERRIDES = (
    "rollout.rollouts_per_example=1", "focus.curriculum='uniform'", "frames.enabled=false",
    "update.objective='exact_reverse_kl'", "update.max_policy_kl=1e3",
    f"update.epochs={STEPS}", f"update.max_steps={STEPS}",
    "update.max_tokens_per_pack=2048", "video.cached_videos=8",
)  # fmt: skip


def update_memory_rows(config_file: str, small: int, large: int, most: int) -> Iterator[Row]:
    """What an update of `large` rollouts holds above one of `small`, at `most` MiB."""
    of = {ranks: {n: _held(config_file, n, ranks) for n in (small, large)} for ranks in (1, RANKS)}
    for what, peaks in (
        ("an update by one process", {n: held.process for n, held in of[1].items()}),
        (f"the process that has {RANKS} ranks train", {n: h.process for n, h in of[RANKS].items()}),
        ("the largest of these ranks", {n: held.largest for n, held in of[RANKS].items()}),
    ):
        yield at_most(
            f"memory of {what}: {large:,} rollouts above {small}",
            (peaks[large] - peaks[small]) / 2**20,
            most,
            " MiB",
            peak_mib={count: peak / 2**20 for count, peak in peaks.items()},
        )


class Held(NamedTuple):
    """Bytes, at most."""

    process: int
    """Of the process that asked for the update."""
    largest: int
    """Of it and its ranks."""


def _held(config_file: str, count: int, ranks: int) -> Held:
    with tempfile.TemporaryDirectory() as folder:
        overrides = _prepared(config_file, Path(folder), count)
        overrides += [f"cluster.workers={ranks}"] if ranks > 1 else []
        command = [sys.executable, "-m", "flows.bench.update_memory", config_file, *overrides]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Held(*json.loads(done.stdout.splitlines()[-1]))


def _prepared(config_file: str, folder: Path, count: int) -> list[str]:
    """A run below `folder` whose first round lacks its update; the overrides that make it so."""
    config = load_config(config_file, list(OVERRIDES))
    known = drawn_examples(config, KNOWN)
    (folder / "videos").mkdir()
    with (folder / "train.jsonl").open("w") as file:
        for number in range(count):
            example = known[number % KNOWN]
            name = f"{number // KNOWN:04}-{Path(example.video_path).name}"
            if not (folder / "videos" / name).exists():
                source = config.data.videos / example.video_path
                (folder / "videos" / name).symlink_to(source.resolve())
            events = [{"query": example.query, "span": [list(span) for span in example.spans]}]
            line = {"source": example.source, "video_path": name, "duration": example.duration}
            file.write(json.dumps({**line, "events": events}) + "\n")
    overrides = [
        *OVERRIDES,
        f"run.path='{folder / 'run'}'",
        f"data.train='{folder / 'train.jsonl'}'",
        f"data.videos='{folder / 'videos'}'",
        f"rollout.examples_per_round={count}",
    ]
    with opened(config_file, overrides) as work:
        policy = work.policy()
        stages.draw.fn(work, policy)
        answers = dict(_answers(config, work, known))
        drawn = round_rows.drawn(work, policy)
        assert len(drawn) == count, len(drawn)
        for start in range(0, count, ROWS_AT_ONCE):
            pairs = [_renamed(e, answers) for e in drawn[start : start + ROWS_AT_ONCE]]
            work.run.append("rollouts", [r for r, _ in pairs], policy_version=policy.version)
            work.run.append("teacher_scores", [s for _, s in pairs], policy_version=policy.version)
        stages.focus.fn(work, policy)
    return overrides


def _answers(
    config: Config, work: Work, known: Sequence[GroundingExample]
) -> Iterator[tuple[Key, tuple[Rollout, TeacherScore]]]:
    policy, (teacher,) = work.policy(), work.teachers
    batches = sample_rollouts(config, policy, known, set())
    rollouts = by_example(r for b in batches for r in b.records)
    pairs = [(e, rollouts[e.example_id]) for e in known]
    batched = score_rollouts(config, teacher.policy(policy.version), pairs)
    scores = {s.rollout_id: s for b in batched for s in b.records}
    for example, (rollout,) in pairs:
        yield _key(example), (rollout, scores[rollout.rollout_id])


def _key(example: GroundingExample) -> Key:
    return Path(example.video_path).name.split("-")[-1], example.query


def _renamed(
    example: GroundingExample, answers: Mapping[Key, tuple[Rollout, TeacherScore]]
) -> tuple[Rollout, TeacherScore]:
    """What was answered and scored of the same video."""
    rollout, score = answers[_key(example)]
    name = make_rollout_id(rollout.policy_version, example.example_id, 0)
    return (
        replace(rollout, rollout_id=name, example_id=example.example_id),
        replace(score, rollout_id=name),
    )


def updated(config_file: str, overrides: Sequence[str]) -> Held:
    """Of this process, which has done nothing before."""
    with opened(config_file, overrides) as work:
        stages.update.fn(work, work.policy())
    return Held(peak_memory.of_this_process()[0], peak_memory.peak()[0])


if __name__ == "__main__":
    print(json.dumps(updated(sys.argv[1], sys.argv[2:])))
