"""A step that a killed update goes on from: all that the steps to come depend on.

    weights.safetensors, optimizer.pt    as `trainer_state.py` has them, of the middle of an update
    random.pt                            each rank's random states, and log pi_v of what was run
                                         before a step
    done.pt                              what the steps so far said, and of which update they are

Weights are in the type in which they are trained, so that what follows is what would have followed,
bit for bit on a CPU. Random rounding needs nothing: its seed is made of the number of the step. A
step of another update (other config, parent or selection) is removed and never used.
"""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from opd_core.config.load import Config
from opd_core.model.ranks import Ranks
from opd_core.types import GroundingExample, Policy, TrainedRollout, UpdateStep, VideoOPDError
from opd_core.update.rows import Outline
from opd_core.update.step_record import FirstStep
from opd_core.update.trained_model import TrainedModel
from opd_core.update.trainer_state import save_whole

DONE_FILE = "done.pt"
FORMAT = 3
"""Of the folder; one of another format is not used."""


class StepStore(Protocol):
    """Where the last saved step lies, whole or not at all. It is of the update in progress."""

    def newest(self) -> Path | None: ...

    def publish(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep the folder that `write` fills in the place of the one before."""

    def clear(self) -> None: ...


@dataclass(slots=True)
class StepsDone:
    """What the steps of an update have said so far."""

    steps: list[UpdateStep] = field(default_factory=list)
    trained: dict[str, TrainedRollout] = field(default_factory=dict)
    first_step: FirstStep | None = None


class Saving:
    """Saves a step of one update every so many `minutes`, counted from the end of the last save."""

    def __init__(
        self,
        store: StepStore,
        update_key: str,
        minutes: float | Literal["never"],
        ranks: Ranks,
    ) -> None:
        self._store, self._key, self._ranks = store, update_key, ranks
        self._seconds = None if minutes == "never" else 60 * minutes
        self._last = time.monotonic()

    def taken_over(self, student: TrainedModel) -> StepsDone:
        """What is saved of this very update, in which `student` then is; else nothing is done yet,
        and what is saved of another is removed."""
        # Not each by itself: of a shared file system one machine may see what another does not yet.
        folder = self._ranks.of_first(self._ranks.together(self._store.newest))
        if folder is None:
            return StepsDone()
        saved = self._ranks.together(partial(self._read, folder, student))
        if saved is None:
            if self._ranks.first:
                self._store.clear()
            return StepsDone()
        first = saved["first_step"]
        return StepsDone(
            [UpdateStep(**step) for step in saved["steps"]],
            {one.rollout_id: one for one in _unpacked(**saved["trained"])},
            None if first is None else FirstStep(**first),
        )

    def _read(self, folder: Path, student: TrainedModel) -> dict[str, Any] | None:
        try:
            saved: dict[str, Any] = torch.load(folder / DONE_FILE, weights_only=True)
            if saved["update"] != self._key:
                return None
            student.read_step(folder)
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, UnpicklingError,
                VideoOPDError) as error:  # fmt: skip
            raise VideoOPDError(
                f"the step saved in {folder} cannot be gone on from ({type(error).__name__}); "
                "remove that folder, and the update begins at its first step"
            ) from error
        return saved

    def step_made(self, done: StepsDone, student: TrainedModel) -> None:
        """Save this step where that is due."""
        if self._seconds is None:
            return
        if not self._ranks.of_first(time.monotonic() - self._last >= self._seconds):
            return
        write_student = student.step_writer()

        def write(folder: Path) -> None:
            write_student(folder)
            content = {
                "update": self._key,
                "steps": [asdict(step) for step in done.steps],
                "trained": _packed(done.trained.values()),
                "first_step": None if done.first_step is None else asdict(done.first_step),
            }
            save_whole(content, folder / DONE_FILE)

        if self._ranks.first:
            self._store.publish(len(done.steps), write)
        self._last = time.monotonic()


def _packed(trained: Collection[TrainedRollout]) -> dict[str, list[str] | list[int] | Tensor]:
    """As few objects: there are as many of them as the steps so far have trained on."""
    logprobs = (torch.tensor(one.student_logprobs) for one in trained)
    return {
        "ids": [one.rollout_id for one in trained],
        "versions": [one.policy_version for one in trained],
        "steps": [one.step for one in trained],
        "lengths": [len(one.student_logprobs) for one in trained],
        "logprobs": torch.cat([torch.empty(0), *logprobs]),
    }


def _unpacked(
    ids: list[str], versions: list[int], steps: list[int], lengths: list[int], logprobs: Tensor
) -> Iterator[TrainedRollout]:
    parts = (array("f", part.tolist()) for part in logprobs.split(lengths))
    return map(TrainedRollout, ids, versions, steps, parts)


def update_key(
    config: Config,
    parent: Policy,
    plan: Sequence[Sequence[GroundingExample]],
    rollouts: Iterable[Outline],
    begins_with: str,
) -> str:
    """A hash of all that decides what an update computes. `begins_with`: what its optimiser
    does."""
    content = [
        FORMAT,
        config.hash,
        parent.weights_hash,
        begins_with,
        [[example.example_id for example in batch] for batch in plan],
    ]
    digest = hashlib.sha256(json.dumps(content).encode())
    for rollout in rollouts:
        score = rollout.score
        reward = (rollout.student_iou, rollout.has_span)
        numbers = (rollout.completion_token_ids, rollout.sampling_logprobs, reward)
        of_score = score and (score.teacher_hash, score.content_hash, score.teacher_logprobs)
        digest.update(json.dumps([rollout.rollout_id, numbers, of_score]).encode())
    return digest.hexdigest()
