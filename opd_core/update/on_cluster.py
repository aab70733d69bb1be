"""An update by ranks on a Ray cluster, started by Ray Train: one for each device of each worker.

The process that asks trains nothing: it is told of each step, and gets what the first rank says.
Where a rank dies, all begin again at the last saved step (`saved_step.py`), a few times.
"""

from __future__ import annotations

import errno
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from opd_core.cluster import losses
from opd_core.cluster.connection import connected
from opd_core.cluster.freed_memory import keep_freed_memory
from opd_core.cluster.resources import cluster_of, of_worker
from opd_core.cluster.use import Meter, Use, add
from opd_core.config.load import Config
from opd_core.model.ranks import ALONE, PATIENCE_SECONDS, Ranks
from opd_core.model.tree_model import choose_device, set_threads
from opd_core.prompts.batches import reading_through, store_in_use
from opd_core.types import Policy, UpdateStep, VideoOPDError
from opd_core.update.rows import TrainedRows
from opd_core.update.student import TrainerFolders, UpdateResult, update_student

ATTEMPTS = 4
"""Of an update whose ranks die."""
LOOK_SECONDS = 0.5
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""What another attempt would meet again."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What every rank is given, as `update_student` takes it."""

    config: Config
    parent: Policy
    rows: TrainedRows
    staging: Path
    base: Path | None
    trainer: TrainerFolders
    restart_optimizer: bool


def update_asked(
    asked: Asked,
    on_step: Callable[[UpdateStep], None] = lambda _: None,
    on_going_on: Callable[[int], None] = lambda _: None,
) -> UpdateResult:
    """By this process, or by the workers where the config has `[cluster]`."""
    if asked.config.cluster is not None:
        return update_on_cluster(asked, on_step, on_going_on)
    return _updated(asked, on_step, on_going_on)


def _updated(
    asked: Asked,
    on_step: Callable[[UpdateStep], None],
    on_going_on: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> UpdateResult:
    return update_student(
        asked.config,
        asked.parent,
        asked.rows,
        asked.staging,
        on_step,
        asked.base,
        asked.trainer,
        asked.restart_optimizer,
        on_going_on,
        ranks,
    )


def update_on_cluster(
    asked: Asked,
    on_step: Callable[[UpdateStep], None] = lambda _: None,
    on_going_on: Callable[[int], None] = lambda _: None,
) -> UpdateResult:
    """Train as `update_student` does, on the workers of `[cluster]`; raises as it does, and where
    the ranks have died too often."""
    with connected(asked.config):
        import ray
        from ray.train import TrainingFailedError

        given = ray.put(asked), ray.put(store_in_use())
        with _told(on_step, on_going_on) as steps, _room_beside(asked.staging) as room:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    with interruptible():
                        trained = _trainer(asked, given, steps, room, attempt).fit()
                except TrainingFailedError as error:
                    _raise_ours(error)
                    if attempt == ATTEMPTS:
                        raise VideoOPDError(
                            f"the ranks of the update have died {ATTEMPTS} times "
                            f"({_last_line(error)}); see Ray's logs, and give the command again: "
                            "it goes on at the last saved step"
                        ) from error
                    losses.happened(again=0)
                    continue
                break
    result: UpdateResult
    result, uses = trained.return_value
    for use in uses:
        add(use)
    return result


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt the block as ever: Ray Train handles it by ending the process as if all
    were done, and leaves its handler behind."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGINT, before)


def _trainer(asked: Asked, given: tuple[Any, Any], steps: Any, room: Path, attempt: int) -> Any:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    section = cluster_of(asked.config)
    cores, cards = of_worker(asked.config, ray.cluster_resources().get("GPU", 0))
    one = {"CPU": cores // max(cards, 1)} | ({"GPU": 1} if cards else {})
    return TorchTrainer(
        _rank,
        train_loop_config={"given": given, "steps": steps, "threads": one["CPU"]},
        torch_config=TorchConfig(backend="nccl" if cards else "gloo", timeout_s=PATIENCE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=section.workers * max(cards, 1),
            use_gpu=cards > 0,
            resources_per_worker=one,
        ),
        run_config=RunConfig(
            name=f"update-round-{asked.parent.version + 1}-{attempt}",
            storage_path=str(room),
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def _rank(told: dict[str, Any]) -> tuple[UpdateResult, list[Use]]:
    """What each rank runs; what all of them have used beside the result."""
    import ray

    keep_freed_memory()
    meter, steps = Meter(), told["steps"]
    asked, store = ray.get(list(told["given"]))
    set_threads(told["threads"])
    ranks = Ranks.joined(choose_device(asked.config.machine.device))

    def tell(kind: str, what: object) -> None:
        if ranks.first:
            steps.tell.remote(kind, what)

    with reading_through(store):
        result = _updated(asked, partial(tell, "step"), partial(tell, "going on"), ranks)
    return result, ranks.gathered(meter.report())


class _Steps:
    """An actor: what the first rank has told and nobody has fetched."""

    def __init__(self) -> None:
        self._told: list[tuple[str, Any]] = []

    def tell(self, kind: str, what: Any) -> None:
        self._told.append((kind, what))

    def fetch(self) -> list[tuple[str, Any]]:
        told, self._told = self._told, []
        return told


@contextmanager
def _told(
    on_step: Callable[[UpdateStep], None], on_going_on: Callable[[int], None]
) -> Iterator[Any]:
    """What ranks tell, and meanwhile it is handed on here. A step that is made again, because its
    ranks died before it was saved, is told once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this machine: it has to outlive that of any rank.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    steps = ray.remote(num_cpus=0, scheduling_strategy=here)(_Steps).remote()
    ended = threading.Event()
    known = 0

    def hand_on() -> None:
        nonlocal known
        for kind, what in ray.get(steps.fetch.remote()):
            if kind == "step" and what.step >= known:
                known = what.step + 1
                on_step(what)
            elif kind == "going on" and not known:
                known = what
                on_going_on(what)

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            hand_on()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield steps
    finally:
        ended.set()
        watcher.join()
        with suppress(ray.exceptions.RayError):  # it is told for whoever looks on
            hand_on()
        ray.kill(steps)


@contextmanager
def _room_beside(staging: Path) -> Iterator[Path]:
    """A folder for what Ray Train notes of its run, gone afterwards. What a kill leaves of it goes
    with the other leftovers of this policy."""
    room = staging.with_name(f"{staging.name}-ray")
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _raise_ours(error: Any) -> None:
    """Raise what a rank has refused as it is, if that is what ended the update; and what its disk
    has."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        of_the_disk = isinstance(cause, OSError) and cause.errno in OF_THE_DISK
        if isinstance(cause, VideoOPDError) or of_the_disk:
            raise cause from None


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
